"""Make the buckets that are named on the command line, where they are not there yet.

The address and the keys are those every S3 client reads: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY.
"""

import sys

import boto3

store = boto3.client("s3")
present = {bucket["Name"] for bucket in store.list_buckets()["Buckets"]}
for name in sys.argv[1:]:
    if name not in present:
        store.create_bucket(Bucket=name)
    print(f"bucket {name}: {'there' if name in present else 'made'}")
