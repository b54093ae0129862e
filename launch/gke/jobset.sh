#!/usr/bin/env bash
# A training on TPU slices of a GKE cluster, as a JobSet (or through xpk).
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: bash launch/gke/jobset.sh COMMAND --name=NAME [options] [-- arguments of python -m anygpt_jax.train]

  submit    start the JobSet in the cluster that kubectl points at (costs money: asks first); what follows --
            goes to the program: --workdir=gs://BUCKET/run, and --config.data.dir=bucket/packed, for the
            bucket is mounted as bucket/ (training data are read from there)
  status    say how many of its jobs run, failed or are done
  logs      follow the log of the first host of the first slice
  delete    end and remove it (asks first); the bucket stays

  --image=NAME   or $GKE_IMAGE, of launch/gke/Dockerfile       --slices=N       slices joined into one run (1)
  --restarts=N   how often it begins again from its newest checkpoint after a host was lost (10); never after a
                 mistake in the arguments or a diverged loss (exit codes 2 and 3), which would repeat.
                 With --xpk what xpk does by default. Needs a JobSet controller with failurePolicy.rules.
  --type=TYPE    or $TPU_TYPE: v4-128, v5litepod-64, v5litepod-256, v5p-128, v6e-64
  --bucket=NAME  or $TPU_BUCKET                                --account=NAME   Kubernetes account (default)
  --xpk=CLUSTER  submit and delete through xpk instead of kubectl; the bucket is then a storage of the cluster:
                 xpk storage create --type=gcsfuse --auto-mount=true --mount-point=/anygpt_jax/bucket …
  --yes (do not ask)  --dry-run (print the commands only)
TEXT
}

# shellcheck source=launch/cloud.sh
source "$(dirname "${BASH_SOURCE[0]}")/../cloud.sh"

name="" image="${GKE_IMAGE:-}" type="${TPU_TYPE:-}" bucket="${TPU_BUCKET:-}"
slices=1 restarts=10 account=default xpk="" yes="" dry_run=""
options="name image type bucket slices restarts account xpk" switches="yes dry-run"

environment_name() {
  case "$1" in type | bucket) echo " (or \$TPU_${1^^})" ;; image) echo " (or \$GKE_IMAGE)" ;; esac
}

# Accelerator label, topology and hosts (of four chips each) of a slice.
slice_of() {
  case "$type" in
    v4-128) echo tpu-v4-podslice 4x4x4 16 ;;
    v5litepod-64) echo tpu-v5-lite-podslice 8x8 16 ;;
    v5litepod-256) echo tpu-v5-lite-podslice 16x16 64 ;;
    v5p-128) echo tpu-v5p-slice 4x4x4 16 ;;
    v6e-64) echo tpu-v6e-slice 8x8 16 ;;
    *) fail "--type=$type is not known here; there are v4-128, v5litepod-64, v5litepod-256, v5p-128 and v6e-64" ;;
  esac
}

# The program's arguments as items of a YAML list.
yaml_arguments() {
  local argument
  for argument in "${train_arguments[@]}"; do
    printf "                    - '%s'\n" "${argument//\'/\'\'}"
  done
}

# Words that were given are quoted: YAML reads on as true, 123456 as a number. No quotes are in them (check).
jobset() {
  local accelerator topology hosts
  read -r accelerator topology hosts <<<"$(slice_of)"
  cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: '$name'
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $restarts
    rules:
      - name: wouldRepeat
        action: FailJobSet
        onJobFailureReasons:
          - PodFailurePolicy
  replicatedJobs:
    - name: slice
      replicas: $slices
      template:
        spec:
          parallelism: $hosts
          completions: $hosts
          backoffLimit: 0
          podFailurePolicy:
            rules:
              - action: FailJob
                onExitCodes:
                  containerName: train
                  operator: In
                  values: [2, 3]
          template:
            metadata:
              annotations:
                gke-gcsfuse/volumes: "true"
            spec:
              restartPolicy: Never
              serviceAccountName: '$account'
              terminationGracePeriodSeconds: 300
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $accelerator
                cloud.google.com/gke-tpu-topology: $topology
              containers:
                - name: train
                  image: '$image'
                  command:
                    - python
                    - -m
                    - anygpt_jax.train
                    - --coordinator=auto
$(yaml_arguments)
                  ports:
                    - containerPort: 8471
                    - containerPort: 8080
                  resources:
                    limits:
                      google.com/tpu: 4
                  volumeMounts:
                    - name: bucket
                      mountPath: /anygpt_jax/bucket
              volumes:
                - name: bucket
                  csi:
                    driver: gcsfuse.csi.storage.gke.io
                    volumeAttributes:
                      bucketName: '$bucket'
                      mountOptions: implicit-dirs
YAML
}

submit() {
  need name image type bucket slices restarts account
  [ ${#train_arguments[@]} -gt 0 ] || fail "submit needs the program's arguments after --, such as -- --config=configs/pretrain.py --workdir=gs://BUCKET/run"
  [[ "${train_arguments[*]}" != *[[:cntrl:]]* ]] || fail "the program's arguments may not hold line breaks or tabs"
  slice_of >/dev/null
  confirm "Start $name on $slices slice(s) of $type? They are billed while it runs."
  if [ -n "$xpk" ]; then
    step xpk workload create "--workload=$name" "--cluster=$xpk" "--tpu-type=$type" "--num-slices=$slices" \
      "--docker-image=$image" "--command=python -m anygpt_jax.train --coordinator=auto $(quoted "${train_arguments[@]}")"
  else
    printf '%s\n' "+ kubectl apply -f - <<'YAML'" "$(jobset)" YAML
    [ -n "$dry_run" ] || jobset | kubectl apply -f -
  fi
}

status() {
  need name
  step kubectl get jobset "$name" -o jsonpath='{.status.replicatedJobsStatus}'
}

logs() {
  need name
  step kubectl logs --follow --selector="jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0,jobset.sigs.k8s.io/job-index=0"
}

delete() {
  need name
  confirm "End and remove $name?"
  if [ -n "$xpk" ]; then
    step xpk workload delete "--workload=$name" "--cluster=$xpk"
  else
    step kubectl delete jobset "$name"
  fi
}

command="${1:-help}"
[ $# -eq 0 ] || shift
case "$command" in
  help | --help | -h) usage ;;
  submit | status | logs | delete)
    parse "$@"
    check_names
    check slices '[1-9][0-9]*' "number of slices"
    check restarts '0|[1-9][0-9]*' "number of restarts"
    check account '[a-z0-9]([-a-z0-9.]*[a-z0-9])?' "Kubernetes account"
    check image '[A-Za-z0-9][-A-Za-z0-9._/:@]*' "image's name"
    program=kubectl
    [ -z "$xpk" ] || program=xpk
    [ -n "$dry_run" ] || command -v "$program" >/dev/null || fail "$program is not installed"
    "$command"
    ;;
  *) fail "there is no command $command (see bash launch/gke/jobset.sh help)" ;;
esac
