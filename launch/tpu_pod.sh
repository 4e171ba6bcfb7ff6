#!/usr/bin/env bash
# Trains on every host of a Cloud TPU slice. Not run.
#
#   TPU=my-pod ZONE=us-east5-a WORKDIR=/nfs/run launch/tpu_pod.sh configs/v3_vitl16.py [--config.KEY=VALUE ...]
#   TPU=my-pod ZONE=us-east5-a WORKDIR=/nfs/run launch/tpu_pod.sh stop
#
# The run goes on when this script ends; its output is shown, and kept in WORKDIR/logs. `stop` lets it save and end. The
# same command continues it, after a preemption too. The repository, the images and the workdir must be at the same path
# on all hosts; the workdir is shared between them. REPOSITORY is the repository's path on the hosts (default: dino_jax,
# in the home folder), PYTHON the interpreter there (3.11 to 3.13), such as that of an environment. WORKDIR must let
# folders be renamed, as NFS does and an object store that is only mounted may not.
set -euo pipefail

: "${TPU:?name of the TPU}" "${ZONE:?zone of the TPU}" "${WORKDIR:?folder that all hosts share}" "${1:?recipe}"
python=$(printf %q "${PYTHON:-python3}") workdir=$(printf %q "$WORKDIR")

if [ "$1" = stop ]; then
  command="pkill -TERM -f '^[^ ]*python[^ ]* -m dino_jax[.]main'"  # not the shells that show the output
else
  log="$workdir/logs/\$(hostname).log"
  command="cd $(printf %q "${REPOSITORY:-dino_jax}") && mkdir -p $workdir/logs && touch $log || exit"
  # Hosts may share the repository: what is there is not installed again.
  command+="; $python -c 'import libtpu, dino_jax.train' 2> /dev/null || $python -m pip install -q -e '.[tpu]' || exit"
  command+="; export DINO_JAX_DISTRIBUTED=1 JAX_COMPILATION_CACHE_DIR=$workdir/compiled"
  command+="; nohup $python -m dino_jax.main --workdir $workdir --config $(printf '%q ' "$@") >> $log 2>&1 < /dev/null &"
  command+=" tail -n 0 -F --pid=\$! $log; wait \$!"
fi
gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$command"
