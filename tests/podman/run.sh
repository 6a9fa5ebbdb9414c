#!/usr/bin/env bash
# run.sh [rootful|rootless]...: lets Podman and Buildah do their work on
# bin/layerfs and compares the layers that come out with those that
# fuse-overlayfs gives. The acceptance script lies beside the repository, in
# ../shared/tools/podman; without it there is nothing to run.
set -eu
cd "$(dirname "$0")/../.."
repo=$PWD
accept=$repo/../shared/tools/podman/accept.sh
if [ ! -x "$accept" ]; then
	echo "skipped: $accept is not there"
	exit 0
fi
if [ "$(id -u)" != 0 ]; then
	echo "test-podman needs root (it makes the ordinary user pod1 by itself)" >&2
	exit 1
fi
missing=
for w in podman buildah crun skopeo umoci busybox-static:busybox uidmap:newuidmap fuse3:fusermount3 fuse-overlayfs python3; do
	command -v "${w##*:}" >/dev/null || missing="$missing ${w%%:*}"
done
if [ -n "$missing" ]; then
	apt-get -qq update
	# shellcheck disable=SC2086 # a list of names
	apt-get -qq install -y --no-install-recommends $missing
fi

D=$(mktemp -d /var/tmp/layerfs-podman-XXXXXX)
chmod 755 "$D"
trap 'rm -rf "$D"' EXIT
# The user of the rootless half must reach the program and the script wherever
# the repository lies.
install -m 755 bin/layerfs "$D/layerfs"
failed=
[ $# -gt 0 ] || set -- rootful rootless
for mode; do
	mkdir "$D/fo" "$D/lf"
	echo "== $mode: what fuse-overlayfs gives"
	if ! (cd "$D/fo" && "$accept" "$mode" /usr/bin/fuse-overlayfs) >"$D/golden.log" 2>&1; then
		tail -40 "$D/golden.log"
		echo "fuse-overlayfs itself fails here: nothing to compare with" >&2
		failed="$failed $mode"
		rm -rf "$D/fo" "$D/lf"
		continue
	fi
	echo "== $mode: layerfs"
	(cd "$D/lf" && "$accept" "$mode" "$D/layerfs" "$D/fo/last-$mode.layers") || failed="$failed $mode"
	rm -rf "$D/fo" "$D/lf"
done
[ -z "$failed" ] || { echo "FAILED:$failed"; exit 1; }
