#!/usr/bin/env bash
# Trains on every host of a Cloud TPU slice. Not run.
#
#   TPU=my-pod ZONE=us-east5-a WORKDIR=/nfs/run launch/tpu_pod.sh configs/v3_vitl16.py [--config.KEY=VALUE ...]
#
# The repository, the images and the workdir must be at the same path on all hosts; the workdir is shared between them.
# The same command continues after a preemption. REPOSITORY is the repository's path on the hosts (default: dino_jax, in
# the home folder), PYTHON the interpreter there (3.11 to 3.13), such as that of an environment. WORKDIR must let folders
# be renamed, as NFS does and an object store that is only mounted may not.
set -euo pipefail

: "${TPU:?name of the TPU}" "${ZONE:?zone of the TPU}" "${WORKDIR:?folder that all hosts share}" "${1:?recipe}"
REPOSITORY=${REPOSITORY:-dino_jax} PYTHON=${PYTHON:-python3}

command="cd $(printf %q "$REPOSITORY") && $(printf %q "$PYTHON") -m pip install -q -e '.[tpu]' &&"
command+=" DINO_JAX_DISTRIBUTED=1 $(printf %q "$PYTHON") -m dino_jax.main --workdir $(printf %q "$WORKDIR") --config $(printf '%q ' "$@")"
gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$command"
