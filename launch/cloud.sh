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

# check VARIABLE PATTERN WHAT: an option that is given must match the whole pattern.
check() {
  local LC_ALL=C value="${!1}"
  [[ -z "$value" || "$value" =~ ^($2)$ ]] || fail "--$1=$value is no $3"
}

# What both scripts are given; a bucket's name also becomes a part of commands and of YAML.
check_names() {
  check name '[a-z]([-a-z0-9]{0,61}[a-z0-9])?' "name of small letters, digits and - (at most 63, a letter first)"
  check bucket '[a-z0-9][-a-z0-9._]{1,220}[a-z0-9]' "bucket's name; give it without gs:// and without a path"
}

# The words in a form that a shell reads back as the same words.
quoted() {
  local word line=""
  for word in "$@"; do
    case "$word" in
      "" | *[!A-Za-z0-9_./:=,@%+-]*) line+=" '${word//\'/\'\\\'\'}'" ;;
      *) line+=" $word" ;;
    esac
  done
  printf '%s' "${line# }"
}

# Prints the command in a form that a shell can read back, and runs it unless this is a dry run.
step() {
  printf '+ %s\n' "$(quoted "$@")"
  [ -n "${dry_run:-}" ] || "$@"
}

# Asks; what is no "y" ends the script, and so does the end of the input, as without a terminal.
confirm() {
  [ -n "${yes:-}${dry_run:-}" ] && return
  local answer=""
  read -r -p "$1 [y/N] " answer || true
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
