# Flags of tpu_pod.sh and gke.sh, which source this. They set SETTINGS, the names that --name=value may set, FLAGS,
# those that stand for 1 without a value, and HELP, the command that lists them; and have `fail`.

main_args=()

# as_in_lists NAME: the setting or flag of this name, whatever its case (the bash of macOS has no ${name^^}).
as_in_lists() {
  local known
  shopt -s nocasematch
  for known in $SETTINGS $FLAGS; do
    if [[ $known = "$1" ]]; then echo "$known"; return; fi
  done
  echo "$1"
}

# read_settings FLAGS ...: sets the variables; what follows -- goes into main_args.
read_settings() {
  local word name
  while [ $# -gt 0 ]; do
    word=$1
    shift
    if [ "$word" = -- ]; then main_args=("$@"); break; fi
    name=${word%%=*}
    name=${name#--}
    name=${name//-/_}
    name=$(as_in_lists "$name")
    case $word in
      --*=*)
        case " $SETTINGS " in
          *" $name "*) printf -v "$name" '%s' "${word#*=}" ;;
          *) fail "no setting $word ($HELP; arguments of wam_jax.main come after --)" ;;
        esac ;;
      *)
        case "$word $FLAGS " in
          --*" $name "*) printf -v "$name" 1 ;;
          *) fail "not understood: $word (settings are --name=value; arguments of wam_jax.main come after --)" ;;
        esac ;;
    esac
  done
}
