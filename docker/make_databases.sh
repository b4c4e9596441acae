#!/bin/sh
# PostgreSQL's image runs this once, on an empty volume: a database for Dagster and one for MLflow, each with its owner.
set -eu
for name in dagster mlflow; do
	case $name in
	dagster) password=$DAGSTER_POSTGRES_PASSWORD ;;
	mlflow) password=$MLFLOW_POSTGRES_PASSWORD ;;
	esac
	psql --no-psqlrc --set=ON_ERROR_STOP=1 --username="$POSTGRES_USER" --dbname=postgres \
		--set=name="$name" --set=password="$password" <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE CONNECT ON DATABASE :"name" FROM PUBLIC;
SQL
done
