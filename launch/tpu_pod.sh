#!/usr/bin/env bash
# Trains on a Cloud TPU slice of any size, with gcloud and its configured project. Settings are environment variables:
#
#   export TPU_NAME=refocus TPU_ZONE=us-central1-a        # name and zone of the slice
#   export TPU_TYPE=v5litepod-16                          # accelerator type
#   export TPU_RUNTIME=v2-alpha-tpuv5-lite                # image of its machines; each TPU type has one
#   export TPU_NFS=10.0.0.2:/share                        # an NFS export (Filestore), mounted at /mnt/shared
#   export TPU_SPOT=1                                     # optional: cheaper, but may be preempted
#
#   launch/tpu_pod.sh create          requests the slice and waits until it is active
#   launch/tpu_pod.sh install         installs the last commit and mounts the NFS export on all its machines
#   launch/tpu_pod.sh run --config=d24 --workdir=/mnt/shared/runs/d24 ...      flags of refocus_jax.main
#   launch/tpu_pod.sh delete
#
# `launch/tpu_pod.sh --dry-run ACTION ...` prints the commands without running them. The workdir must be on the shared
# file system, because each machine writes its part of a checkpoint; datasets of tfds: are expected in
# /mnt/shared/tensorflow_datasets. `run` lasts as long as the training: start it in tmux. After a preemption, `delete`,
# `create`, `install` and the same `run` resume from the last checkpoint.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly SHARED=/mnt/shared
readonly ARCHIVE=dist/refocus_jax.tar.gz

fail() {
    echo "$0: $*" >&2
    exit 2
}

require() {  # NAME EXAMPLE
    [[ -n ${!1:-} ]] || fail "$1 is not set; give it, for example: export $1=$2"
}

quoted() {  # prints the words quoted for a shell, only where needed
    local word words=()
    for word in "$@"; do
        if [[ $word =~ ^[A-Za-z0-9_@%+=:,./~-]+$ ]]; then words+=("$word"); else words+=("${word@Q}"); fi
    done
    echo "${words[*]}"
}

execute() {
    if [[ $dry_run ]]; then
        quoted "$@"
    else
        "$@"
    fi
}

on_all_workers() {  # COMMAND
    execute gcloud compute tpus tpu-vm ssh "$TPU_NAME" "--zone=$TPU_ZONE" --worker=all "--command=$1"
}

create() {
    require TPU_TYPE v5litepod-16
    require TPU_RUNTIME v2-alpha-tpuv5-lite
    execute gcloud compute tpus queued-resources create "$TPU_NAME" "--node-id=$TPU_NAME" "--zone=$TPU_ZONE" \
        "--accelerator-type=$TPU_TYPE" "--runtime-version=$TPU_RUNTIME" ${TPU_SPOT:+--spot}
    local describe=(gcloud compute tpus queued-resources describe "$TPU_NAME" "--zone=$TPU_ZONE"
        "--format=value(state.state)")
    if [[ $dry_run ]]; then
        execute "${describe[@]}"
        return
    fi
    local state
    while true; do
        state=$("${describe[@]}")
        case $state in
            ACTIVE) return ;;
            FAILED | SUSPENDING | SUSPENDED)
                fail "the request is $state; see 'gcloud compute tpus queued-resources describe', then delete it" ;;
        esac
        echo "$TPU_NAME: $state"
        sleep 30
    done
}

install() {
    require TPU_NFS 10.0.0.2:/share
    execute mkdir -p "$(dirname "$ARCHIVE")"
    execute git archive --format=tar.gz "--output=$ARCHIVE" HEAD
    execute gcloud compute tpus tpu-vm scp "$ARCHIVE" "$TPU_NAME:refocus_jax.tar.gz" "--zone=$TPU_ZONE" --worker=all
    # A new machine updates itself in the background and holds apt's lock.
    local apt="sudo apt-get -o DPkg::Lock::Timeout=600 -qq"
    on_all_workers "mountpoint -q $SHARED || { $apt update && $apt -y install nfs-common && sudo mkdir -p $SHARED && \
sudo mount -t nfs $(quoted "$TPU_NFS") $SHARED; }"
    on_all_workers "rm -rf refocus_jax && mkdir refocus_jax && tar -xzf refocus_jax.tar.gz -C refocus_jax"
    # uv installs its own Python, because that of the images may be older than 3.11.
    on_all_workers "cd refocus_jax && python3 -m pip install --user -q uv && ~/.local/bin/uv venv -q --python 3.12 && \
~/.local/bin/uv pip install -q -e '.[tpu,tfds,report]'"
}

run() {
    local flag workdir=
    for flag in "$@"; do
        case $flag in --workdir=*) workdir=${flag#*=} ;; esac
    done
    [[ $workdir == "$SHARED"/* ]] || fail "--workdir is '$workdir'; give --workdir=$SHARED/..., which all machines see"
    on_all_workers "cd refocus_jax && TFDS_DATA_DIR=$SHARED/tensorflow_datasets exec .venv/bin/python -m \
refocus_jax.main $(quoted "$@")"
}

delete() {
    execute gcloud compute tpus queued-resources delete "$TPU_NAME" "--zone=$TPU_ZONE" --force --quiet
}

dry_run=
if [[ ${1:-} == --dry-run ]]; then
    dry_run=1
    shift
fi
action=${1:-}
case $action in
    create | install | run | delete) shift ;;
    *) fail "the action is '$action'; give create, install, run or delete" ;;
esac
[[ $action == run || $# == 0 ]] || fail "$action takes no arguments, but got: $*"
require TPU_NAME refocus
require TPU_ZONE us-central1-a
"$action" "$@"
