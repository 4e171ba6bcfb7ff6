#!/usr/bin/env bash
# Trains on every host of a Cloud TPU slice. Not run.
#
#   TPU=my-pod ZONE=us-east5-a WORKDIR=gs-mounted/or/nfs/run launch/tpu_pod.sh configs/v3_vitl16.py [--config.KEY=VALUE ...]
#
# The repository, the images and the workdir must be at the same path on all hosts; the workdir is shared between them.
# The same command continues after a preemption.
set -euo pipefail

: "${TPU:?name of the TPU}" "${ZONE:?zone of the TPU}" "${WORKDIR:?folder that all hosts share}"
REPOSITORY=${REPOSITORY:-dino_jax}

command="cd $(printf %q "$REPOSITORY") && pip install -q -e '.[tpu]' &&"
command+=" DINO_JAX_DISTRIBUTED=1 python -m dino_jax.main --workdir $(printf %q "$WORKDIR") --config $(printf '%q ' "$@")"
gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$command"
