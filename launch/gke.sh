#!/usr/bin/env bash
# One run on a Google Kubernetes Engine cluster, as a JobSet: one pod per host of a TPU slice, or per GPU node.
#
#   bash launch/gke.sh COMMAND [--SETTING=VALUE …] [-- ARGUMENTS OF wam_jax.main]
#
#   submit   starts it; a finished or failed one of this name is replaced, and the run goes on from what is saved
#   show     prints the JobSet, to adapt or to keep
#   status   pods and restarts           logs     of process 0          delete   saves and ends it
#
#   bash launch/gke.sh submit --name=wam --image=REGISTRY/wam_jax:1 --accelerator=tpu-v5-lite-podslice --topology=4x4 \
#     --bucket=my-bucket --service-account=wam -- --config=experiments/calvin_wam.py:paper --config.data.calvin_path=DATA
#
# The cluster needs JobSet (clusters made by XPK have it) and, for a bucket, the Cloud Storage FUSE CSI driver. The
# image holds this repository as its working folder and the package installed. --dry-run (or DRY_RUN=1) prints the
# commands and runs none. Settings are also read from the environment, in capitals.
set -euo pipefail

NAME=${NAME:-wam}
NAMESPACE=${NAMESPACE:-default}
IMAGE=${IMAGE:-}
ACCELERATOR=${ACCELERATOR:-tpu-v5-lite-podslice} # label of the nodes: gke-tpu-accelerator, or with GPUS gke-accelerator
TOPOLOGY=${TOPOLOGY:-4x4}                        # of a TPU slice
CHIPS_PER_HOST=${CHIPS_PER_HOST:-4}              # of a TPU slice
HOSTS=${HOSTS:-}                                 # by default chips of TOPOLOGY / CHIPS_PER_HOST
GPUS=${GPUS:-}                                   # per node, for GPU nodes; needs HOSTS
BUCKET=${BUCKET:-}                               # Cloud Storage bucket, mounted at MOUNT
CLAIM=${CLAIM:-}                                 # or a ReadWriteMany volume claim (Filestore)
MOUNT=${MOUNT:-/mnt/wam_jax}
WORKDIR=${WORKDIR:-}                             # --config.workdir; by default MOUNT/runs/NAME
SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-default}      # Kubernetes service account that may use the bucket
SPOT=${SPOT:-0}                                  # 1: only on Spot nodes
QUEUE=${QUEUE:-}                                 # Kueue's local queue, if the cluster has one (XPK: multislice-queue)
MAX_RESTARTS=${MAX_RESTARTS:-20}
GRACE_SECONDS=${GRACE_SECONDS:-120}              # between SIGTERM and SIGKILL, to save; Spot nodes give less
PYTHON=${PYTHON:-python}
DRY_RUN=${DRY_RUN:-0}

SETTINGS="NAME NAMESPACE IMAGE ACCELERATOR TOPOLOGY CHIPS_PER_HOST HOSTS GPUS BUCKET CLAIM MOUNT WORKDIR \
SERVICE_ACCOUNT SPOT QUEUE MAX_RESTARTS GRACE_SECONDS PYTHON DRY_RUN"

FLAGS="DRY_RUN SPOT"
HELP="bash launch/gke.sh help"
case ${BASH_SOURCE[0]} in
  */*) source "${BASH_SOURCE[0]%/*}/settings.sh" ;;
  *) source ./settings.sh ;;
esac

fail() { printf 'gke: %s\n' "$@" >&2; exit 2; }

call() { # runs a command, or prints it
  if [ "$DRY_RUN" = 1 ]; then printf '%q ' "$@"; echo; else "$@"; fi
}

json() { # a string for YAML; a $ doubled, or Kubernetes would fill in $(NAME)
  local text=$1
  text=${text//\\/\\\\}
  text=${text//\"/\\\"}
  text=${text//$'\n'/\\n}
  text=${text//$'\t'/\\t}
  printf '"%s"' "${text//\$/\$\$}"
}

settle() {
  read_settings "$@"
  [[ $NAME =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] || fail "--name=$NAME: small letters, digits and -, at most 40"
}

complete() { # what a JobSet needs
  [ -n "$IMAGE" ] || fail "--image=IMAGE is needed"
  BUCKET=${BUCKET#gs://}
  BUCKET=${BUCKET%/}
  if [ -n "$BUCKET" ] && [ -n "$CLAIM" ]; then fail "--bucket or --claim, not both"; fi
  [ -n "$BUCKET$CLAIM" ] || fail "--bucket=NAME or --claim=NAME is needed: all hosts must see the run's folder"
  WORKDIR=${WORKDIR:-$MOUNT/runs/$NAME}
  if [ -z "$HOSTS" ]; then
    [ -z "$GPUS" ] || fail "--hosts=N is needed with --gpus=$GPUS"
    [[ $TOPOLOGY =~ ^[0-9]+(x[0-9]+){1,2}$ ]] || fail "--topology=$TOPOLOGY: as 4x4 or 2x2x4"
    local chips=$((${TOPOLOGY//x/*}))
    [ "$chips" -ge "$CHIPS_PER_HOST" ] || CHIPS_PER_HOST=$chips # a pod that asks for more is never scheduled
    HOSTS=$((chips / CHIPS_PER_HOST))
    [ "$((HOSTS * CHIPS_PER_HOST))" = "$chips" ] ||
      fail "--topology=$TOPOLOGY has $chips chips, not a multiple of --chips-per-host=$CHIPS_PER_HOST"
  fi
  local word
  for word in ${main_args[@]+"${main_args[@]}"}; do
    case $word in
      --config.workdir | --config.workdir=*) fail "$word: give --workdir=FOLDER before --" ;;
    esac
  done
}

jobset() {
  local word args=() find= options
  for word in ${main_args[@]+"${main_args[@]}"} --config.workdir="$WORKDIR"; do args+=("$(json "$word")"); done
  # On TPUs JAX finds the other hosts itself; on GPU nodes by the address of the first pod.
  if [ -n "$GPUS" ]; then
    find=" --coordinator=$NAME-host-0-0.$NAME:8476 --num_processes=$HOSTS --process_id=\$JOB_COMPLETION_INDEX"
  fi
  cat << YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $NAME
  namespace: $NAMESPACE
YAML
  # A slice is a node pool of its own.
  [ -n "$GPUS" ] || printf '  annotations:\n    %s\n' \
    "alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool"
  [ -z "$QUEUE" ] || printf '  labels:\n    kueue.x-k8s.io/queue-name: %s\n' "$(json "$QUEUE")"
  cat << YAML
spec:
  failurePolicy:
    # All pods start again when one is lost (preempted, or it ended with a code below); not after an error.
    maxRestarts: $MAX_RESTARTS
    rules:
    - action: FailJobSet
      onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
  - name: host
    replicas: 1
    template:
      spec:
        parallelism: $HOSTS
        completions: $HOSTS
        completionMode: Indexed
        backoffLimit: 0
        podFailurePolicy:
          rules:
          - action: FailJob
            onPodConditions: []
            onExitCodes:
              containerName: main
              operator: NotIn
              values: [75, 137, 143] # another host was lost; killed; saved after SIGTERM
        template:
          metadata:
            annotations:
              gke-gcsfuse/volumes: "$([ -n "$BUCKET" ] && echo true || echo false)"
          spec:
            restartPolicy: Never
            serviceAccountName: $(json "$SERVICE_ACCOUNT")
            terminationGracePeriodSeconds: $GRACE_SECONDS
            nodeSelector:
YAML
  if [ -n "$GPUS" ]; then
    printf '              cloud.google.com/gke-accelerator: %s\n' "$(json "$ACCELERATOR")"
  else
    printf '              cloud.google.com/gke-tpu-accelerator: %s\n' "$(json "$ACCELERATOR")"
    printf '              cloud.google.com/gke-tpu-topology: %s\n' "$(json "$TOPOLOGY")"
  fi
  [ "$SPOT" != 1 ] || printf '              cloud.google.com/gke-spot: "true"\n'
  cat << YAML
            containers:
            - name: main
              image: $(json "$IMAGE")
              # exec: SIGTERM reaches the program.
              command: ["bash", "-c", $(json "exec $PYTHON -m wam_jax.main \"\$@\"$find"), "wam_jax"]
              args:
$(printf '              - %s\n' "${args[@]}")
              env:
              - name: WAM_JAX_GRACE_SECONDS # after which the program ends without what it could not save
                value: "$((GRACE_SECONDS > 10 ? GRACE_SECONDS - 5 : GRACE_SECONDS))"
              ports:
              - containerPort: 8471
              - containerPort: 8476
              resources:
                limits:
                  $([ -n "$GPUS" ] && echo "nvidia.com/gpu: $GPUS" || echo "google.com/tpu: $CHIPS_PER_HOST")
              volumeMounts:
              - name: runs
                mountPath: $(json "$MOUNT")
            volumes:
            - name: runs
YAML
  if [ -n "$BUCKET" ]; then
    # No caching of what is (not) there: hosts read what another has just written. Checkpoints are folders that get
    # their name when they are complete.
    options=implicit-dirs,file-system:rename-dir-limit:200000
    options+=,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0
    cat << YAML
              csi:
                driver: gcsfuse.csi.storage.gke.io
                volumeAttributes:
                  bucketName: $(json "$BUCKET")
                  mountOptions: "$options"
YAML
  else
    cat << YAML
              persistentVolumeClaim:
                claimName: $(json "$CLAIM")
YAML
  fi
}

submit() {
  if [ "$DRY_RUN" = 1 ]; then
    call kubectl --namespace="$NAMESPACE" delete jobset "$NAME" --ignore-not-found
    printf '%s\n' "kubectl apply --filename=- << 'YAML'" "$(jobset)" YAML
    return
  fi
  local manifest found
  manifest=$(jobset)
  found=$(kubectl --namespace="$NAMESPACE" get jobset "$NAME" --ignore-not-found \
    --output='jsonpath={.metadata.name} {.status.terminalState}')
  case $found in
    '' | ' ') ;;
    *\ Completed | *\ Failed) kubectl --namespace="$NAMESPACE" delete jobset "$NAME" --ignore-not-found ;;
    *) fail "$NAME is running (bash launch/gke.sh status --name=$NAME); delete it first, or choose another --name" ;;
  esac
  kubectl apply --filename=- <<< "$manifest"
}

command=${1:-help}
[ $# -eq 0 ] || shift
case $command in
  submit | status | logs | delete)
    settle "$@"
    [ "$DRY_RUN" = 1 ] || command -v kubectl > /dev/null || fail "kubectl is needed: kubernetes.io/docs/tasks/tools"
    pods=jobset.sigs.k8s.io/jobset-name=$NAME
    case $command in
      submit) complete; submit ;;
      status)
        call kubectl --namespace="$NAMESPACE" get jobset "$NAME"
        call kubectl --namespace="$NAMESPACE" get pods --selector="$pods" --output=wide ;;
      logs)
        call kubectl --namespace="$NAMESPACE" logs --selector="$pods,batch.kubernetes.io/job-completion-index=0" \
          --container=main --follow --tail=-1 ;;
      delete) call kubectl --namespace="$NAMESPACE" delete jobset "$NAME" ;;
    esac ;;
  show) settle "$@"; complete; jobset ;;
  help | -h | --help) sed -n '2,/^set -/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" ;;
  *) fail "no command $command: submit, show, status, logs or delete" ;;
esac
