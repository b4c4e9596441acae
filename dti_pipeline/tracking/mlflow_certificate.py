"""A certificate in MLflow: on the run that trained the model, and on its version in the registry."""

from __future__ import annotations

import logging

from dti_pipeline import artifacts
from dti_pipeline.certify.report import Certificate
from dti_pipeline.config import Config
from dti_pipeline.paths import Paths
from dti_pipeline.tracking import registry
from dti_pipeline.tracking.mlflow_evaluation import trained
from dti_pipeline.tracking.mlflow_store import connect

log = logging.getLogger(__name__)


def record_certificate(config: Config, paths: Paths, certificate: Certificate) -> None:
    """Files of a certificate onto the run, under certificate/; its outcome as tags of the run and of those versions
    that are of the certified bytes. Says so where there is no such run or version."""
    store, _ = connect(config, paths)
    run = trained(store, certificate.mlflow_run_id, certificate.paradigm)
    if run is None:
        return
    folder = artifacts.read(paths.certificate(certificate.paradigm, certificate.model_digest), "certify").path
    tags = {
        "certificate": "passed" if certificate.passed else "failed",
        "certificate.model": certificate.model_digest,
        "certificate.targets": str(certificate.targets),
        "certificate.sentence": certificate.sentence,
    }
    versions = registry.versions_of(store, config, run.info.run_id, certificate.model_digest)
    if not versions:
        log.warning("no version of the registry is of the certified model: its run alone keeps the certificate")
    store.log_artifacts(run.info.run_id, str(folder), "certificate")
    for name, value in tags.items():
        store.set_tag(run.info.run_id, name, value)
        for version in versions:
            store.set_model_version_tag(version.name, version.version, name, value)
