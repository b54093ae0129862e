#!/usr/bin/env bash
# A Cloud TPU slice from nothing to a running training, and back to nothing.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: bash launch/gcloud/tpu.sh COMMAND --name=NAME [options] [-- arguments of python -m anygpt_jax.train]

  create    make the slice (costs money: asks first); with --queued it waits in Google's queue
  status    say what state the slice, or with --queued the request, is in
  install   copy this checkout to every host (the files that git tracks, as they are now), install it with the
            extras `tpu` and `gcs`, mount the bucket as bucket/ (training data are read from there)
  run       start training on every host with --coordinator=auto; what follows -- goes to the program,
            which runs in the copied checkout: --workdir=gs://BUCKET/run --config.data.dir=bucket/packed
  logs      follow the log of one host (--worker=N, default 0)
  stop      ask every host to save and stop (SIGTERM)
  copy      copy --from=PATH of the bucket to --to=DIRECTORY here
  delete    delete the slice (asks first); the bucket stays

  --project=ID  or $TPU_PROJECT       --type=TYPE      or $TPU_TYPE, such as v4-128, v5litepod-64, v6e-64
  --zone=ZONE   or $TPU_ZONE          --version=IMAGE  or $TPU_VERSION, by default the type's base image
  --bucket=NAME or $TPU_BUCKET        --queued  --spot  --yes (do not ask)  --dry-run (print the commands only)
TEXT
}

# shellcheck source=launch/cloud.sh
source "$(dirname "${BASH_SOURCE[0]}")/../cloud.sh"

name="" project="${TPU_PROJECT:-}" zone="${TPU_ZONE:-}" type="${TPU_TYPE:-}" version="${TPU_VERSION:-}"
bucket="${TPU_BUCKET:-}" worker=0 from="" to="" queued="" spot="" yes="" dry_run=""
options="name project zone type version bucket worker from to" switches="queued spot yes dry-run"

environment_name() {
  case "$1" in project | zone | type | bucket) echo " (or \$TPU_${1^^})" ;; esac
}

on_workers() {
  local workers="$1"
  shift
  step gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" "--worker=$workers" "--command=$*"
}

base_image() {
  case "$type" in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

create() {
  need name project zone type
  local options=("${place[@]}" "--accelerator-type=$type")
  local image="${version:-$(base_image)}"
  [ -z "$spot" ] || options+=(--spot)
  confirm "Create the TPU slice $name ($type${spot:+, spot}) in $zone of $project? It is billed until it is deleted."
  if [ -n "$queued" ]; then
    step gcloud compute tpus queued-resources create "$name" "--node-id=$name" "${options[@]}" "--runtime-version=$image"
  else
    step gcloud compute tpus tpu-vm create "$name" "${options[@]}" "--version=$image"
  fi
}

status() {
  need name project zone
  local kind=tpu-vm
  [ -z "$queued" ] || kind="queued-resources"
  step gcloud compute tpus "$kind" describe "$name" "${place[@]}" "--format=value(state)"
}

install() {
  need name project zone
  local archive="${TMPDIR:-/tmp}/anygpt_jax.tar.gz"
  # The edits that are not committed go along: stash create makes a commit of them and changes nothing here.
  # shellcheck disable=SC2016  # the inner shell expands these
  step bash -c 'edits="$(git stash create)" && git archive --format=tar.gz "--output=$0" "${edits:-HEAD}"' "$archive"
  [ -n "$dry_run" ] || name_untracked
  step gcloud compute tpus tpu-vm scp "$archive" "$name:anygpt_jax.tar.gz" "${place[@]}" --worker=all
  # shellcheck disable=SC2016  # the hosts expand these
  on_workers all 'mkdir -p anygpt_jax && tar -xzf anygpt_jax.tar.gz -C anygpt_jax && cd anygpt_jax &&' \
    'curl -LsSf https://astral.sh/uv/install.sh | sh && export PATH="$HOME/.local/bin:$PATH" &&' \
    'uv venv --quiet --allow-existing --python 3.11 .venv && uv pip install --quiet --python .venv -c constraints.txt -e ".[tpu,gcs]"'
  [ -z "$bucket" ] || mount_bucket
}

name_untracked() {
  local files
  files="$(git ls-files --others --exclude-standard --directory)"
  [ -z "$files" ] || echo "note: not copied, since git does not track them (git add): ${files//$'\n'/ }" >&2
}

mount_bucket() {
  local keys=/usr/share/keyrings/cloud.google.asc site=https://packages.cloud.google.com/apt
  # shellcheck disable=SC2016
  on_workers all 'command -v gcsfuse > /dev/null ||' \
    "{ curl -fsS $site/doc/apt-key.gpg | sudo tee $keys > /dev/null &&" \
    "echo \"deb [signed-by=$keys] $site gcsfuse-\$(lsb_release -cs) main\" | sudo tee /etc/apt/sources.list.d/gcsfuse.list &&" \
    'sudo apt-get update -q && sudo apt-get install -q -y gcsfuse; }'
  on_workers all "cd anygpt_jax && mkdir -p bucket && { mountpoint -q bucket || gcsfuse --implicit-dirs $bucket bucket; }"
}

run() {
  need name project zone
  [ ${#train_arguments[@]} -gt 0 ] || fail "run needs the program's arguments after --, such as -- --config=configs/pretrain.py --workdir=gs://BUCKET/run"
  on_workers all "cd anygpt_jax && nohup .venv/bin/python -m anygpt_jax.train --coordinator=auto $(quoted "${train_arguments[@]}") > ~/train.log 2>&1 < /dev/null &"
}

logs() {
  need name project zone worker
  on_workers "$worker" "tail -n 100 -f ~/train.log"
}

stop() {
  need name project zone
  on_workers all "pkill -TERM -f 'anygpt_jax[.]train'"
}

copy() {
  need bucket from to
  [[ "$from" != *://* ]] || fail "--from=$from is an address; give the path inside the bucket"
  step gcloud storage rsync --recursive "gs://$bucket/$from" "$to"
}

delete() {
  need name project zone
  confirm "Delete the TPU slice $name in $zone of $project? What is not in the bucket is lost."
  if [ -n "$queued" ]; then
    step gcloud compute tpus queued-resources delete "$name" "${place[@]}" --force --quiet
  else
    step gcloud compute tpus tpu-vm delete "$name" "${place[@]}" --quiet
  fi
}

command="${1:-help}"
[ $# -eq 0 ] || shift
case "$command" in
  help | --help | -h) usage ;;
  create | status | install | run | logs | stop | copy | delete)
    parse "$@"
    check_names
    place=("--project=$project" "--zone=$zone")
    check worker '0|[1-9][0-9]*' "host's number"
    cd "$(dirname "${BASH_SOURCE[0]}")/../.."
    [ -n "$dry_run" ] || command -v gcloud >/dev/null || fail "gcloud is not installed; see https://cloud.google.com/sdk/docs/install"
    "$command"
    ;;
  *) fail "there is no command $command (see bash launch/gcloud/tpu.sh help)" ;;
esac
