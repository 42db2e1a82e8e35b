#!/bin/sh
# Copy a published version into the cluster's model repository: sh deploy/kubernetes/publish.sh 2
# The version is unpacked under a temporary name and renamed, so that servers never see a part of it; running servers do not load it.
# The first call also copies the configs and adapters of the models. Apply publisher.yaml first.
# Variables: REPOSITORY, the local model repository; NAMESPACE, the namespace in the cluster.
set -eu
fail() { echo "error: $1" >&2; exit 1; }
[ $# -eq 1 ] || fail "give one version: sh deploy/kubernetes/publish.sh 2"
version=$1 repository=${REPOSITORY:-model_repository} namespace=${NAMESPACE:-restormer} models=${MODELS:-/models}
case $version in *[!0-9]* | '' | 0*) fail "$version is not a version: give 1, 2, 3, …" ;; esac
[ -d "$repository/restormer/$version" ] || fail "$repository/restormer/$version does not exist: make engine VERSION=$version"
inside() { kubectl exec -i -n "$namespace" restormer-publisher -- sh -euc "$1"; }

inside "cd $models" || fail "the pod restormer-publisher does not answer: kubectl apply -n $namespace -f deploy/kubernetes/publisher.yaml"
inside "test ! -e $models/restormer/$version" || fail "version $version already exists and may be in service: publish under another number"
if ! inside "test -e $models/restormer/config.pbtxt"; then
  tar -C "$repository" --exclude=__pycache__ --exclude='./restormer/[0-9]*' --exclude='./restormer/.*' -cf - . |
    inside "tar -C $models --no-same-owner -xf -" || fail "configs and adapters were not copied"
fi
tar -C "$repository/restormer" --exclude=__pycache__ -cf - "$version" |
  inside "rm -rf $models/restormer/.$version.new; mkdir $models/restormer/.$version.new
          tar -C $models/restormer/.$version.new --no-same-owner -xf -
          mv $models/restormer/.$version.new/$version $models/restormer/$version; rmdir $models/restormer/.$version.new" ||
  fail "version $version was not copied; served versions are unchanged"
echo "version $version is in the cluster. To serve it: RESTORMER_VERSIONS=$version in deploy/kubernetes/base/kustomization.yaml, kubectl apply -k ..."
