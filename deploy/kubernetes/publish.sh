#!/bin/sh
# Brings a version that is published here into the cluster's model repository: sh deploy/kubernetes/publish.sh 2
# Nothing is served by that yet, and no server sees half of it: it is unpacked under another name and then renamed. The first
# time, the models' configs and adapters go along. Needs publisher.yaml to be applied. REPOSITORY, NAMESPACE: where from and to.
set -eu
fail() { echo "error: $1" >&2; exit 1; }
[ $# -eq 1 ] || fail "say which version: sh deploy/kubernetes/publish.sh 2"
version=$1 repository=${REPOSITORY:-model_repository} namespace=${NAMESPACE:-restormer} models=${MODELS:-/models}
case $version in *[!0-9]* | '' | 0*) fail "$version is no version: 1, 2, 3" ;; esac
[ -d "$repository/restormer/$version" ] || fail "$repository/restormer/$version is not there: make engine VERSION=$version"
inside() { kubectl exec -i -n "$namespace" restormer-publisher -- sh -euc "$1"; }

inside "cd $models" || fail "no pod restormer-publisher answers: kubectl apply -n $namespace -f deploy/kubernetes/publisher.yaml"
inside "test ! -e $models/restormer/$version" || fail "version $version is there already, and may be in service: publish under another number"
if ! inside "test -e $models/restormer/config.pbtxt"; then
  tar -C "$repository" --exclude=__pycache__ --exclude='./restormer/[0-9]*' --exclude='./restormer/.*' -cf - . |
    inside "tar -C $models --no-same-owner -xf -" || fail "configs and adapters did not arrive"
fi
tar -C "$repository/restormer" --exclude=__pycache__ -cf - "$version" |
  inside "rm -rf $models/restormer/.$version.new; mkdir $models/restormer/.$version.new
          tar -C $models/restormer/.$version.new --no-same-owner -xf -
          mv $models/restormer/.$version.new/$version $models/restormer/$version; rmdir $models/restormer/.$version.new" ||
  fail "version $version did not arrive; what is served is as it was"
echo "version $version is in the cluster. To serve it: RESTORMER_VERSIONS=$version in deploy/kubernetes/base/kustomization.yaml, kubectl apply -k ..."
