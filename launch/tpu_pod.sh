#!/usr/bin/env bash
# Trains on a Cloud TPU slice of any size, with gcloud and its configured project. Settings are environment variables:
#
#   export TPU_NAME=refocus TPU_ZONE=us-central1-a        # name and zone of the slice
#   export TPU_TYPE=v5litepod-16                          # accelerator type
#   export TPU_RUNTIME=v2-alpha-tpuv5-lite                # image of its machines; each TPU type has one
#
# For v6e: TPU_TYPE=v6e-16 TPU_RUNTIME=v2-alpha-tpuv6e. Optional:
#
#   export TPU_NFS=10.0.0.2:/share                        # an NFS export (Filestore), mounted at /mnt/shared
#   export TPU_SPOT=1                                     # cheaper, but may be preempted
#   export TPU_NODE_COUNT=2                               # several slices that train together
#   export TPU_NETWORK=default TPU_SUBNETWORK=default TPU_SERVICE_ACCOUNT=me@project.iam.gserviceaccount.com
#
#   launch/tpu_pod.sh train --config=d24 --workdir=gs://bucket/runs/d24 ...    flags of refocus_jax.main
#
# does all of this until the training is finished, also after preemptions. Its parts are actions too:
#
#   launch/tpu_pod.sh create          requests the slice and waits until it is active
#   launch/tpu_pod.sh install         installs the last commit on all its machines, and mounts the NFS export if given
#   launch/tpu_pod.sh run FLAGS       trains; a training that is running already is followed
#   launch/tpu_pod.sh stop            asks the training to save and to stop
#   launch/tpu_pod.sh delete
#
# `launch/tpu_pod.sh --dry-run ACTION ...` prints the commands without running them. The workdir must be
# in a bucket or below /mnt/shared, because each machine writes its part of a checkpoint; datasets of tfds: are expected
# in /mnt/shared/tensorflow_datasets. The training does not end when the connection does, and `train` or `run` with the same
# flags follows it again.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly SHARED=/mnt/shared
readonly ARCHIVE=dist/refocus_jax.tar.gz
readonly SELF=launch/tpu_pod.sh
readonly PREEMPTED=75 UNREACHABLE=255  # codes of the program and of ssh

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

nodes() {  # prints the names of the slices
    local i
    if ((${TPU_NODE_COUNT:-1} == 1)); then
        echo "$TPU_NAME"
    else
        for ((i = 0; i < TPU_NODE_COUNT; i++)); do echo "$TPU_NAME-$i"; done
    fi
}

on_workers() {  # NODE WORKERS COMMAND
    execute gcloud compute tpus tpu-vm ssh "$1" "--zone=$TPU_ZONE" "--worker=$2" "--command=$3"
}

on_all_workers() {  # COMMAND
    local node
    for node in $(nodes); do
        on_workers "$node" all "$1"
    done
}

on_first_worker() {  # COMMAND
    on_workers "$(nodes | head -1)" 0 "$1"
}

state() {  # prints the state of the request; fails if gcloud does
    execute gcloud compute tpus queued-resources describe "$TPU_NAME" "--zone=$TPU_ZONE" "--format=value(state.state)"
}

create() {
    require TPU_TYPE v5litepod-16
    require TPU_RUNTIME v2-alpha-tpuv5-lite
    local names=("--node-id=$TPU_NAME")
    ((${TPU_NODE_COUNT:-1} == 1)) || names=("--node-count=$TPU_NODE_COUNT" "--node-prefix=$TPU_NAME")
    execute gcloud compute tpus queued-resources create "$TPU_NAME" "${names[@]}" "--zone=$TPU_ZONE" \
        "--accelerator-type=$TPU_TYPE" "--runtime-version=$TPU_RUNTIME" ${TPU_SPOT:+--spot} \
        ${TPU_NETWORK:+"--network=$TPU_NETWORK"} ${TPU_SUBNETWORK:+"--subnetwork=$TPU_SUBNETWORK"} \
        ${TPU_SERVICE_ACCOUNT:+"--service-account=$TPU_SERVICE_ACCOUNT"}
    if [[ $dry_run ]]; then
        state
        return
    fi
    local state
    while true; do
        state=$(state)
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
    execute mkdir -p "$(dirname "$ARCHIVE")"
    execute git archive --format=tar.gz "--output=$ARCHIVE" HEAD
    local node
    for node in $(nodes); do
        execute gcloud compute tpus tpu-vm scp "$ARCHIVE" "$node:refocus_jax.tar.gz" "--zone=$TPU_ZONE" --worker=all
    done
    # A new machine updates itself in the background and holds apt's lock.
    local apt="sudo apt-get -o DPkg::Lock::Timeout=600 -qq"
    [[ -z ${TPU_NFS:-} ]] || on_all_workers "mountpoint -q $SHARED || { $apt update && $apt -y install nfs-common && sudo mkdir -p $SHARED && \
sudo mount -t nfs $(quoted "$TPU_NFS") $SHARED; }"
    on_all_workers "rm -rf refocus_jax && mkdir refocus_jax && tar -xzf refocus_jax.tar.gz -C refocus_jax"
    # uv installs its own Python, because that of the images may be older than 3.11.
    on_all_workers "cd refocus_jax && python3 -m pip install --user -q uv && ~/.local/bin/uv venv -q --python 3.12 && \
~/.local/bin/uv pip install -q -e '.[tpu,tfds,report,gcs]'"
}

check_workdir() {  # FLAGS
    local flag workdir=
    for flag in "$@"; do
        case $flag in --workdir=*) workdir=${flag#*=} ;; esac
    done
    [[ $workdir == gs://* || ( -n ${TPU_NFS:-} && $workdir == "$SHARED"/* ) ]] ||
        fail "--workdir is '$workdir'; give --workdir=gs://BUCKET/..., or TPU_NFS and --workdir=$SHARED/..., which all \
machines see"
}

# Each machine keeps three files next to the package: run.pid and run.log of the program that it runs, and run.code,
# which appears when the program ends.
run() {
    check_workdir "$@"
    on_all_workers "cd refocus_jax && if ! kill -0 \$(cat run.pid 2>/dev/null) 2>/dev/null; then rm -f run.code; : > run.log; \
TFDS_DATA_DIR=$SHARED/tensorflow_datasets setsid nohup bash -c '\"\$@\"; echo \$? > run.code' run .venv/bin/python -m \
refocus_jax.main $(quoted "$@") > run.log 2>&1 < /dev/null & echo \$! > run.pid; fi"
    local code=
    while true; do
        on_first_worker 'cd refocus_jax && tail -n +1 --pid=$(cat run.pid) -f run.log' || true
        code=$(on_first_worker 'cat refocus_jax/run.code') || code=
        [[ -z $dry_run ]] || { echo "$code"; return; }
        [[ -z $code ]] || break
        [[ $(state) == ACTIVE ]] || exit $UNREACHABLE
        echo "the connection to $TPU_NAME was lost; the training goes on"
        sleep 10
    done
    [[ $code == 0 || $code == "$PREEMPTED" ]] || on_all_workers 'tail -n 20 refocus_jax/run.log'
    exit "$code"
}

stop() {
    on_all_workers 'pkill -TERM --parent $(cat refocus_jax/run.pid)'
}

train() {
    check_workdir "$@"
    [[ -z $dry_run ]] || fail "train decides by what it sees, so it has no dry run; its parts have"
    local found code
    while true; do
        found=$(state 2>/dev/null) || found=none
        if [[ $found != ACTIVE ]]; then
            [[ $found == none ]] || "$SELF" delete || true
            "$SELF" create && "$SELF" install || { echo "$TPU_NAME: again in a minute"; sleep 60; continue; }
        fi
        code=0
        "$SELF" run "$@" || code=$?
        case $code in
            0) return ;;
            "$PREEMPTED" | "$UNREACHABLE") echo "$TPU_NAME: interrupted; the training resumes" ;;
            *) exit "$code" ;;
        esac
    done
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
    create | install | run | stop | train | delete) shift ;;
    *) fail "the action is '$action'; give train, or create, install, run, stop or delete" ;;
esac
[[ $action == run || $action == train || $# == 0 ]] || fail "$action takes no arguments, but got: $*"
require TPU_NAME refocus
require TPU_ZONE us-central1-a
"$action" "$@"
