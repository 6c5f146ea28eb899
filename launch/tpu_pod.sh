#!/usr/bin/env bash
# One run on a TPU pod slice: makes the VMs, installs this package on all hosts, runs, and goes on after preemption.
#
#   bash launch/tpu_pod.sh COMMAND [--SETTING=VALUE …] [-- ARGUMENTS OF wam_jax.main]
#
#   create    makes the slice                    run       runs in the foreground; repeated, goes on from what is saved
#   install   the package on all hosts           resume    makes the slice again if it was preempted, installs, runs
#   delete    removes the slice                  watch     resume, again and again until the run has ended
#   stop      saves and ends a run               settings  prints the settings
#
#   bash launch/tpu_pod.sh watch --name=wam --zone=us-central1-a --accelerator=v5litepod-16 --bucket=my-bucket \
#     -- --config=experiments/calvin_wam.py:paper --config.data.calvin_path=DATA
#
# --dry-run (or DRY_RUN=1) prints the commands and runs none. Settings are also read from the environment, in capitals.
set -euo pipefail

NAME=${NAME:-wam}                          # of the slice
ZONE=${ZONE:-us-central1-a}
PROJECT=${PROJECT:-}                       # gcloud's own if empty
ACCELERATOR=${ACCELERATOR:-v5litepod-16}
VERSION=${VERSION:-}                       # runtime image; by default the one for ACCELERATOR
SPOT=${SPOT:-1}                            # 0: on demand
QUEUED=${QUEUED:-0}                        # 1: by a queued resource, which waits for capacity
CREATE_FLAGS=${CREATE_FLAGS:-}             # more flags for creating, as "--network=n --service-account=s"
BUCKET=${BUCKET:-}                         # Cloud Storage bucket, mounted on all hosts with gcsfuse at MOUNT
NFS=${NFS:-}                               # or an NFS share (Filestore), as 10.0.0.2:/share
MOUNT=${MOUNT:-/mnt/wam_jax}
WORKDIR=${WORKDIR:-}                       # --config.workdir; by default MOUNT/runs/NAME
REPOSITORY=${REPOSITORY:-}                 # git address; by default the files git knows here, edits included
BRANCH=${BRANCH:-}
GCSFUSE_VERSION=${GCSFUSE_VERSION:-3.13.0} # installed where there is no gcsfuse
RETRY_SECONDS=${RETRY_SECONDS:-60}         # between tries of watch
MAX_RESTARTS=${MAX_RESTARTS:-100}          # of watch
DRY_RUN=${DRY_RUN:-0}

SETTINGS="NAME ZONE PROJECT ACCELERATOR VERSION SPOT QUEUED CREATE_FLAGS BUCKET NFS MOUNT WORKDIR REPOSITORY BRANCH \
GCSFUSE_VERSION RETRY_SECONDS MAX_RESTARTS DRY_RUN"
HOST_LOST=75 TERMINATED=143 DISCONNECTED=255
FOLDER=wam_jax            # on the hosts, in the home folder
STATE=.wam_jax_run        # there, of the run: id, pid, log, exit code
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

FLAGS="DRY_RUN SPOT QUEUED"
HELP="bash launch/tpu_pod.sh settings"
case ${BASH_SOURCE[0]} in
  */*) source "${BASH_SOURCE[0]%/*}/settings.sh" ;;
  *) source ./settings.sh ;;
esac

fail() { printf 'tpu_pod: %s\n' "$@" >&2; exit 2; }
say() { printf 'tpu_pod: %s\n' "$@" >&2; }
quoted() { local text; printf -v text '%q ' "$@"; printf '%s' "${text% }"; }

call() { # runs a command, or prints it so that it can be pasted
  if [ "$DRY_RUN" = 1 ]; then quoted "$@"; echo; else "$@"; fi
}

# ---------------------------------------------------------------------------------------------- on this machine

place=()
settle() { # reads flags; what follows -- goes into main_args
  read_settings "$@"
  [[ $NAME =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] || fail "--name=$NAME: small letters, digits and -, a letter first"
  if [ -z "$VERSION" ]; then
    case $ACCELERATOR in
      v5litepod-*) VERSION=v2-alpha-tpuv5-lite ;;
      v5p-*) VERSION=v2-alpha-tpuv5 ;;
      v6e-*) VERSION=v2-alpha-tpuv6e ;;
      v2-* | v3-* | v4-*) VERSION=tpu-ubuntu2204-base ;;
      *) fail "--version=IMAGE is needed for --accelerator=$ACCELERATOR (gcloud compute tpus tpu-vm versions list)" ;;
    esac
  fi
  [ -z "$BUCKET" ] || [ -z "$NFS" ] || fail "--bucket or --nfs, not both"
  BUCKET=${BUCKET#gs://}
  BUCKET=${BUCKET%/}
  place=(--zone="$ZONE")
  [ -z "$PROJECT" ] || place+=(--project="$PROJECT")
}

show_settings() {
  local name
  for name in $SETTINGS; do printf '# %s=%q\n' "$name" "${!name}"; done >&2
}

need_gcloud() {
  [ "$DRY_RUN" = 1 ] || command -v gcloud > /dev/null || fail "gcloud is needed: cloud.google.com/sdk/docs/install"
}

need_storage() {
  if [ -z "$WORKDIR" ]; then
    [ -n "$BUCKET$NFS" ] || fail "--bucket=NAME, --nfs=HOST:/SHARE or --workdir=FOLDER is needed:" \
      "all hosts must see the run's folder"
    WORKDIR=$MOUNT/runs/$NAME
  fi
  local word
  for word in ${main_args[@]+"${main_args[@]}"}; do
    case $word in
      --config.workdir | --config.workdir=*) fail "$word: give --workdir=FOLDER before --" ;;
    esac
  done
}

on_hosts() { # the words as one command on all hosts
  call gcloud compute tpus tpu-vm ssh "$NAME" "${place[@]}" --worker=all \
    --ssh-flag="-o ServerAliveInterval=30 -o ServerAliveCountMax=4" --command="$(quoted "$@")"
}

this_script_on_hosts() {
  on_hosts env BUCKET="$BUCKET" NFS="$NFS" MOUNT="$MOUNT" GCSFUSE_VERSION="$GCSFUSE_VERSION" \
    bash "$FOLDER/launch/tpu_pod.sh" "$@"
}

state() { # READY, PREEMPTED, …; MISSING only where gcloud says so, UNKNOWN if it cannot be asked
  local ask=(gcloud compute tpus tpu-vm describe "$NAME" "${place[@]}" --format="value(state)") why
  if "${ask[@]}" 2> /dev/null; then return; fi
  why=$("${ask[@]}" 2>&1 > /dev/null) || true
  case $why in
    *NOT_FOUND* | *"not found"*) echo MISSING ;;
    *) say "$why"; echo UNKNOWN ;;
  esac
}

create() {
  local flags=(--accelerator-type="$ACCELERATOR") more
  read -r -a more <<< "$CREATE_FLAGS"
  [ "$SPOT" != 1 ] || flags+=(--spot)
  flags+=(${more[@]+"${more[@]}"})
  if [ "$QUEUED" != 1 ]; then
    call gcloud compute tpus tpu-vm create "$NAME" "${place[@]}" "${flags[@]}" --version="$VERSION"
    return
  fi
  call gcloud compute tpus queued-resources create "$NAME" "${place[@]}" "${flags[@]}" --runtime-version="$VERSION" \
    --node-id="$NAME" || return
  local ask=(gcloud compute tpus queued-resources describe "$NAME" "${place[@]}" --format="value(state.state)") found
  if [ "$DRY_RUN" = 1 ]; then call "${ask[@]}"; return; fi
  until found=$("${ask[@]}") && [ "$found" = ACTIVE ]; do
    case $found in FAILED | SUSPENDED) say "the queued resource is $found"; return 1 ;; esac
    say "waiting for capacity (${found:-unknown})"
    sleep "$RETRY_SECONDS"
  done
}

delete() {
  if [ "$QUEUED" = 1 ]; then
    call gcloud compute tpus queued-resources delete "$NAME" "${place[@]}" --force --quiet
  else
    call gcloud compute tpus tpu-vm delete "$NAME" "${place[@]}" --quiet
  fi
}

install() { # with "|| return": where it is tested, set -e does not hold
  if [ -n "$REPOSITORY" ]; then
    on_hosts bash -c 'set -e; [ -d "$3" ] || git clone "$1" "$3"; cd "$3"; git fetch origin; git checkout "${2:-HEAD}"
      ! git symbolic-ref -q HEAD > /dev/null || git pull --ff-only' install "$REPOSITORY" "$BRANCH" "$FOLDER" || return
  else
    local archive=${TMPDIR:-/tmp}/wam_jax_$NAME.tar.gz commit=HEAD
    if [ "$DRY_RUN" != 1 ]; then
      git -C "$here" rev-parse HEAD > /dev/null 2>&1 || fail "$here is no git clone: give --repository=ADDRESS"
      commit=$(git -C "$here" stash create) || return # HEAD with the edits, if there are any; changes nothing
    fi
    call git -C "$here" archive --format=tar.gz --output="$archive" "${commit:-HEAD}" || return
    call gcloud compute tpus tpu-vm scp "$archive" "$NAME:wam_jax.tar.gz" "${place[@]}" --worker=all || return
    on_hosts bash -c 'rm -rf "$1" && mkdir "$1" && tar -xzf wam_jax.tar.gz -C "$1"' unpack "$FOLDER" || return
  fi
  this_script_on_hosts _install
}

run() {
  need_storage
  local id
  id=$(date +%s)-$$
  [ "$DRY_RUN" != 1 ] || id=ID
  trap 'say "the run goes on there; to save and end it: bash launch/tpu_pod.sh stop --name=$NAME --zone=$ZONE"' INT
  this_script_on_hosts _run "$id" ${main_args[@]+"${main_args[@]}"} --config.workdir="$WORKDIR"
}

ensure() { # a slice that is ready and has the package; creates it if it is gone
  local found
  if [ "$DRY_RUN" = 1 ]; then
    call gcloud compute tpus tpu-vm describe "$NAME" "${place[@]}" --format="value(state)"
    say "if it was preempted:"
    delete
    create
    install
    return
  fi
  while :; do
    found=$(state)
    case $found in
      READY) [ "${1:-}" = keep ] || install; return ;;
      PREEMPTED | TERMINATED) say "the slice is $found: making it again"; delete || true ;;
      MISSING) [ "$QUEUED" != 1 ] || delete > /dev/null 2>&1 || true ;; # what is left of the request
      *) say "the slice is $found"; sleep "$RETRY_SECONDS"; continue ;;
    esac
    if create; then install; return; fi
    say "no capacity yet; trying again in $RETRY_SECONDS s"
    sleep "$RETRY_SECONDS"
  done
}

resume() {
  need_storage
  ensure
  run
}

watch() {
  need_storage
  if [ "$DRY_RUN" = 1 ]; then
    resume
    say "then the same again, until the run ends with 0"
    return
  fi
  local code restarts=0 keep=
  while :; do
    code=0
    ensure $keep || code=$?
    if [ "$code" = 0 ]; then
      (run) || code=$?
      [ "$code" != 0 ] || return 0
      [ "$code" = 130 ] && return 130
      sleep "$((code == DISCONNECTED ? RETRY_SECONDS : 0))" # preemption shows in the state a little later
      if [ "$(state)" = READY ]; then
        case $code in
          "$HOST_LOST" | "$TERMINATED" | "$DISCONNECTED") ;;
          *) say "the run ended with $code"; return "$code" ;;
        esac
      fi
    else
      sleep "$RETRY_SECONDS"
    fi
    restarts=$((restarts + 1))
    [ "$restarts" -le "$MAX_RESTARTS" ] || { say "given up after $MAX_RESTARTS restarts"; return "$code"; }
    say "ended with $code; going on ($restarts of at most $MAX_RESTARTS)"
    keep=keep # the package is there unless the slice is made again
  done
}

# ---------------------------------------------------------------------------------------------- on the hosts

host_install() {
  cd "$HOME"
  if [ -n "$BUCKET" ] && ! command -v gcsfuse > /dev/null; then
    # From Google's own repository: apt checks that Google signed what it installs.
    local google=https://packages.cloud.google.com/apt key=/usr/share/keyrings/cloud.google.asc
    curl --proto =https -sSf "$google/doc/apt-key.gpg" | sudo tee "$key" > /dev/null
    echo "deb [signed-by=$key] $google gcsfuse-$(lsb_release -cs) main" \
      | sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null
    sudo apt-get update -q
    sudo apt-get install -y -q "gcsfuse=$GCSFUSE_VERSION"
  fi
  if [ -n "$NFS" ] && ! command -v mount.nfs > /dev/null; then
    sudo apt-get update -q
    sudo apt-get install -y -q nfs-common
  fi
  # The images bring Python 3.10; uv brings its own.
  command -v uv > /dev/null || python3 -m pip install --user --quiet uv
  export PATH=$HOME/.local/bin:$PATH
  [ -x wam_jax_env/bin/python ] || uv venv --quiet --python 3.12 wam_jax_env
  uv pip install --quiet --python wam_jax_env/bin/python --constraint "$FOLDER/requirements.lock" -e "./$FOLDER[tpu]"
}

host_mount() {
  [ -n "$BUCKET$NFS" ] || return 0
  ! mountpoint -q "$MOUNT" || return 0
  sudo mkdir -p "$MOUNT"
  if [ -n "$BUCKET" ]; then
    sudo chown "$(id -u):$(id -g)" "$MOUNT"
    # No caching of what is (not) there: hosts read what another has just written. Checkpoints are folders that get
    # their name when they are complete.
    gcsfuse --implicit-dirs --rename-dir-limit=200000 --metadata-cache-ttl-secs=0 \
      --metadata-cache-negative-ttl-secs=0 "$BUCKET" "$MOUNT"
  else
    sudo mount -t nfs -o nolock,hard "$NFS" "$MOUNT"
    sudo chown "$(id -u):$(id -g)" "$MOUNT"
  fi
}

host_stop() { # the run's program saves and ends; after two minutes it is killed
  local pid i
  pid=$(cat "$HOME/$STATE/pid" 2> /dev/null) || return 0
  kill -TERM "$pid" 2> /dev/null || return 0
  for ((i = 0; i < 240; i++)); do
    kill -0 "$pid" 2> /dev/null || return 0
    sleep 0.5
  done
  kill -KILL "$pid" 2> /dev/null || true
}

host_run() { # starts the run, unless this start has done so; shows its log; returns its exit code
  # gcloud repeats a command when its connection breaks; the same ID then finds the run that goes on.
  local id=$1 dir=$HOME/$STATE pid code
  shift
  mkdir -p "$dir"
  if [ "$(cat "$dir/id" 2> /dev/null)" != "$id" ]; then
    host_stop
    host_mount
    rm -f "$dir/pid" "$dir/code"
    : > "$dir/log"
    echo "$id" > "$dir/id"
    cd "$HOME/$FOLDER"
    # Apart from the connection: it goes on without one.
    setsid bash -c 'dir=$1; shift; "$@" > "$dir/log" 2>&1 & echo $! > "$dir/pid.new"; mv "$dir/pid.new" "$dir/pid"
      wait $!; echo $? > "$dir/code.new"; mv "$dir/code.new" "$dir/code"' \
      run "$dir" env PYTHONUNBUFFERED=1 WAM_JAX_GRACE_SECONDS=110 "${WAM_PYTHON:-$HOME/wam_jax_env/bin/python}" -m wam_jax.main "$@" \
      < /dev/null > /dev/null 2>&1 &
    until [ -s "$dir/pid" ]; do sleep 0.1; done
  fi
  pid=$(cat "$dir/pid")
  tail -n +1 -f --pid="$pid" -s 0.3 "$dir/log" || true
  for _ in 1 2 3 4 5 6 7 8 9 10; do [ -s "$dir/code" ] || sleep 0.2; done
  code=$(cat "$dir/code" 2> /dev/null || echo "$HOST_LOST")
  return "$code"
}

command=${1:-help}
[ $# -eq 0 ] || shift
case $command in
  create | install | run | resume | watch | stop | delete)
    settle "$@"
    need_gcloud
    show_settings
    case $command in
      stop) this_script_on_hosts _stop ;;
      *) "$command" ;;
    esac ;;
  settings) settle "$@"; show_settings ;;
  _install) host_install ;;
  _stop) host_stop ;;
  _run) host_run "$@" ;;
  help | -h | --help) sed -n '2,/^set -/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" ;;
  *) fail "no command $command: create, install, run, resume, watch, stop, delete or settings" ;;
esac
