#!/usr/bin/env bash
# Starts a Slurm cluster on this machine alone, to try launch/slurm.sbatch. It needs Debian or Ubuntu and root, without
# systemd or cgroups, so a container is enough.
#
#   launch/dev/slurm_local.sh start [DIRECTORY]     installs slurm-wlm and munge if they are missing
#   export SLURM_CONF=DIRECTORY/slurm.conf          printed at the end of `start`; then use sbatch, squeue, scontrol ...
#   launch/dev/slurm_local.sh stop [DIRECTORY]
#
# All state, keys and logs are in DIRECTORY (default runs/slurm_local). There are two partitions: jobs of `urgent`
# preempt those of `normal`, which are requeued.
set -euo pipefail

action=${1:?start or stop}
directory=$(realpath -m "${2:-runs/slurm_local}")
export SLURM_CONF=$directory/slurm.conf

start() {
    if ! command -v slurmctld munged >/dev/null; then
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq slurm-wlm munge
    fi
    mkdir -p "$directory"
    chmod 700 "$directory"  # munged refuses a directory that others can write to
    (umask 077; head -c 1024 /dev/urandom > "$directory/munge.key")
    # `slurmd -C` prints this machine's NodeName, CPUs, RealMemory and so on as slurm.conf wants them.
    cat > "$SLURM_CONF" <<CONFIG
ClusterName=local
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=root
AuthInfo=socket=$directory/munge.socket
StateSaveLocation=$directory/state
SlurmdSpoolDir=$directory/spool
SlurmctldPidFile=$directory/slurmctld.pid
SlurmdPidFile=$directory/slurmd.pid
SlurmctldLogFile=$directory/slurmctld.log
SlurmdLogFile=$directory/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
$(slurmd -C | head -1) NodeAddr=127.0.0.1
PartitionName=normal Nodes=ALL Default=YES PriorityTier=1 GraceTime=120
PartitionName=urgent Nodes=ALL PriorityTier=2 PreemptMode=OFF
CONFIG
    mkdir -p "$directory/state" "$directory/spool"
    munged --force --key-file="$directory/munge.key" --socket="$directory/munge.socket" \
        --pid-file="$directory/munged.pid" --log-file="$directory/munged.log" --seed-file="$directory/munged.seed"
    slurmctld
    slurmd
    for _ in $(seq 30); do
        if sinfo -h -o %T 2>/dev/null | grep -q idle; then
            sinfo
            echo "export SLURM_CONF=$SLURM_CONF"
            return
        fi
        sleep 1
    done
    echo "the node did not come up; see $directory/*.log" >&2
    return 1
}

stop() {
    local daemon
    for daemon in slurmd slurmctld munged; do
        if [[ -e $directory/$daemon.pid ]]; then
            kill "$(<"$directory/$daemon.pid")" || true  # it may have ended by itself
        fi
    done
}

case $action in
    start | stop) "$action" ;;
    *) echo "$0: unknown action $action; start or stop" >&2; exit 2 ;;
esac
