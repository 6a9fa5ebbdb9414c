#!/usr/bin/env bash
# stress.sh [MINUTES]: every file system stressor of stress-ng for MINUTES (ten)
# in all, first on the file system of $LAYERFS_TEST_DIR (/var/tmp) itself, then in
# a layerfs mount on it. Fails if one reports an error in the mount that it
# does not report natively, if the daemon dies, or if it leaks descriptors.
# Run it by hand: the binary is $LAYERFS_BIN or bin/layerfs. Needs stress-ng.
set -eu
cd "$(dirname "$0")/../.."

minutes=${1:-10}
bin=$(realpath "${LAYERFS_BIN:-bin/layerfs}")
command -v stress-ng >/dev/null || { echo "stress-ng is not installed (Debian package stress-ng)" >&2; exit 2; }
[ -x "$bin" ] || { echo "$bin is missing: make build" >&2; exit 2; }

D=$(mktemp -d "${LAYERFS_TEST_DIR:-/var/tmp}/layerfs-stress-XXXXXX")
chmod 755 "$D"
cleanup() {
	mountpoint -q "$D/m" && { fusermount3 -u "$D/m" || fusermount3 -uz "$D/m"; }
	rm -rf "$D"
}
trap cleanup EXIT
mkdir "$D/native" "$D/l" "$D/u" "$D/w" "$D/m" "$D/log"
cp "$bin" "$D/layerfs" # processes are told from others by this path

# The class also has some that use no file of the directory.
stressors=$(stress-ng --class 'filesystem?' 2>&1 | sed 's/.*stressors: *//' | tr ' ' '\n' |
	grep -vxE 'bind-mount|binderfs|eventfd|procfs' | grep -x '[a-z0-9-][a-z0-9-]*')
each=$((minutes * 60 / $(echo "$stressors" | wc -l)))
[ "$each" -ge 1 ] || each=1

# run DIR NAME: one stressor in a directory; prints its result. 0 is success,
# 2 a failure of what it has checked, 3 a lack of resources, 4 not possible here.
run() {
	local rc=0 dir=$D/$1 name=$2
	timeout -k 10 $((each + 60)) stress-ng --"$name" 2 --timeout "$each" --verify --temp-path "$dir" \
		>"$D/log/$1.$name" 2>&1 || rc=$?
	# A failure that does not end the run is only in the text.
	grep -qE 'stress-ng: (fail|error):' "$D/log/$1.$name" && [ "$rc" = 0 ] && rc=2
	echo "$rc"
}

"$D/layerfs" -o "lowerdir=$D/l,upperdir=$D/u,workdir=$D/w" "$D/m"
pid=$(pgrep -f "^$D/layerfs ")
fds() { find "/proc/$pid/fd" -mindepth 1 2>/dev/null | wc -l; }
echo "stress-ng: $(echo "$stressors" | wc -l) stressors, $each s each; kernel $(uname -r), $(stat -f -c %T "$D"), uid $(id -u)"

failed=
for s in $stressors; do
	native=$(run native "$s")
	mount=$(run m "$s")
	printf '%-14s native %s, layerfs %s; %s descriptors, %s\n' "$s" "$native" "$mount" "$(fds)" \
		"$(grep VmRSS "/proc/$pid/status" 2>/dev/null | tr -s '\t ' ' ')"
	if [ ! -d "/proc/$pid" ]; then
		echo "the daemon is dead"
		failed="$failed $s"
		break
	fi
	# A file system may lack what a stressor needs (4), but may not fail.
	if [ "$mount" != "$native" ] && [ "$mount" != 4 ] && [ "$native" != 2 ]; then
		failed="$failed $s"
		tail -20 "$D/log/m.$s"
	fi
	# What it has left is its own affair, not that of the next.
	find "$D/native" "$D/m" -mindepth 1 -maxdepth 1 -exec rm -rf {} +
done

if [ -d "/proc/$pid" ] && [ "$(fds)" -gt $((256 + 64)) ]; then
	echo "the daemon has $(fds) descriptors with nothing open"
	failed="$failed descriptors"
fi
[ -z "$failed" ] || { echo "FAILED:$failed"; exit 1; }
echo "ok: layerfs reports no error that the file system below does not"
