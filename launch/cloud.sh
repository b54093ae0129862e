# shellcheck shell=bash disable=SC2154
# Sourced by the scripts that rent machines: one sentence for a mistake, a dry run, a question before it costs.
# The script sets `command`, its variables, and a function environment_name (where else a variable may come from).

fail() {
  echo "error: $*" >&2
  exit 2
}

# need VARIABLE…: every named variable must be set, by the option --VARIABLE or its environment variable.
need() {
  local variable
  for variable in "$@"; do
    [ -n "${!variable}" ] || fail "$command needs --$variable=…$(environment_name "$variable")"
  done
}

# Prints the command in a form that a shell can read back, and runs it unless this is a dry run.
step() {
  local word line="+"
  for word in "$@"; do
    case "$word" in
      *[!A-Za-z0-9_./:=,@%+-]*) line+=" '${word//\'/\'\\\'\'}'" ;;
      *) line+=" $word" ;;
    esac
  done
  printf '%s\n' "$line"
  [ -n "${dry_run:-}" ] || "$@"
}

confirm() {
  [ -n "${yes:-}${dry_run:-}" ] && return
  local answer
  read -r -p "$1 [y/N] " answer
  [ "$answer" = y ] || fail "nothing was done"
}

# Reads the options --NAME=VALUE and --NAME that the script lists in `options` and `switches` into the variables of
# their names; what follows -- becomes train_arguments.
train_arguments=()
parse() {
  local key
  while [ $# -gt 0 ]; do
    key="${1#--}"
    key="${key%%=*}"
    if [ "$1" = -- ]; then
      shift
      # shellcheck disable=SC2034  # the caller reads it
      train_arguments=("$@")
      return
    elif [[ "$1" == --*=* && " $options " == *" $key "* ]]; then
      printf -v "${key//-/_}" '%s' "${1#*=}"
    elif [[ "$1" == --* && "$1" != *=* && " $switches " == *" $key "* ]]; then
      printf -v "${key//-/_}" yes
    else
      fail "unknown option $1 (see bash $0 help)"
    fi
    shift
  done
}
