#!/usr/bin/env bash
# profile.sh: mounts over LOWER with a daemon that profiles itself (LAYERFS_CPUPROFILE), runs
# the shell command WORK in it, and prints where the daemon has spent its time.
# The profile stays in bin/profile.
set -eu
cd "$(dirname "$0")/../.."
D=$(mktemp -d /var/tmp/layerfs-profile-XXXXXX)
clean() {
	umount "$D/m" 2>/dev/null || fusermount3 -u "$D/m" 2>/dev/null || true
	rm -rf "$D"
}
trap clean EXIT
trap 'exit 130' INT TERM
mkdir "$D/u" "$D/w" "$D/m"
LAYERFS_CPUPROFILE=$PWD/bin/profile bin/layerfs-profiled -o "lowerdir=${LOWER:-/},upperdir=$D/u,workdir=$D/w" "$D/m"
(cd "$D/m" && sh -c "$WORK" >/dev/null) || true # a file that this user may not read is no matter
umount "$D/m" 2>/dev/null || fusermount3 -u "$D/m"
for _ in $(seq 50); do
	[ -s bin/profile ] && break # it is written at the daemon's end
	sleep 0.1
done
go tool pprof -top -nodecount=40 bin/layerfs-profiled bin/profile
