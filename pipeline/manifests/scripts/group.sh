#!/bin/bash
# One replica over several pods: the first one starts a rank on each GPU of all of them, the others
# wait to be told, over ssh. LeaderWorkerSet sets the variables LWS_*.
#   group.sh RANKS_PER_POD MPIRUN...     in the first pod
#   group.sh                             in the others
set -euo pipefail

port=2222
temporary=${TMPDIR:-/tmp}
keys=/etc/group-ssh

# All of it as the image's own user: no port below 1024, no login but with the group's key.
if [ "$LWS_WORKER_INDEX" != 0 ]; then
    ssh-keygen -q -t ed25519 -N '' -f "$temporary/host_key"
    # A session has none of the container's variables otherwise, and finds neither MPI nor CUDA.
    exec /usr/sbin/sshd -D -e -f /dev/null -h "$temporary/host_key" -p "$port" \
        -o PidFile=none -o UsePAM=no -o StrictModes=no \
        -o PasswordAuthentication=no -o KbdInteractiveAuthentication=no \
        -o "AuthorizedKeysFile=$keys/authorized_keys" \
        -o "SetEnv=PATH=$PATH LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-} HOME=$HOME PYTHONDONTWRITEBYTECODE=1"
fi

ranks=$1
launcher=$2
shift 2
# Nobody knows the others' keys, which are as old as their containers. Who may connect at all is the
# NetworkPolicy's affair.
client=(-p "$port" -i "$keys/id_ed25519" -o BatchMode=yes -o ConnectTimeout=5
    -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR)
# NAME-GROUP.SERVICE.NAMESPACE: the others are called NAME-GROUP-1, NAME-GROUP-2 and so on.
first=${LWS_LEADER_ADDRESS%%.*}
domain=${LWS_LEADER_ADDRESS#*.}
echo "$LWS_LEADER_ADDRESS slots=$ranks" >"$temporary/hosts"
for ((index = 1; index < LWS_GROUP_SIZE; index++)); do
    host=$first-$index.$domain
    echo "$host slots=$ranks" >>"$temporary/hosts"
    # How long this may take is the startup probe's affair.
    until ssh "${client[@]}" "$host" true; do
        echo "waiting for $host" >&2
        sleep 2
    done
done
# Slots are filled in this order, so rank 0, which listens, is here.
exec "$launcher" --default-hostfile "$temporary/hosts" --mca plm_rsh_args "${client[*]}" "$@"
