#!/usr/bin/env bash
# Every test of the repository: unit tests, the same under the race detector,
# end-to-end tests as root and as an ordinary user, a short end-to-end leg with
# a binary built for the race detector. At the end nothing may be left: no
# mount, process, loop device or file.
set -eu
cd "$(dirname "$0")/.."

D=$(mktemp -d /var/tmp/layerfs-make-XXXXXX)
chmod 755 "$D"
mkdir -m 1777 "$D/t"
export LAYERFS_TEST_DIR=$D/t LAYERFS_TEST_STRICT=1 LAYERFS_BIN=$PWD/bin/layerfs
units=$(go list ./... | grep -v '/layerfs/tests')
failed=

leg() {
	local name=$1 start=$SECONDS
	shift
	echo "== $name"
	if "$@"; then echo "   $((SECONDS - start)) s"; else failed="$failed, $name"; fi
}

as_user() {
	local p name rc=0
	mkdir -m 755 "$D/u"
	cp bin/layerfs "$D/u/layerfs"
	CGO_ENABLED=0 go build -tags faults -o "$D/u/layerfs-faults" ./cmd/layerfs
	install -d -m 700 -o 65534 -g 65534 "$D/u/home"
	for p in ./tests ./tests/union ./tests/parity ./tests/data ./tests/blockcopy ./tests/security ./tests/resources ./tests/crash ./tests/pool ./tests/aufs ./tests/branchtools ./tests/layers ./tests/kernel ./tests/run ./tests/drivers; do
		[ -d "$p" ] || continue
		name=$(basename "$p").test
		go test -c -o "$D/u/$name" "$p"
		short=
		case $name in aufs.test | crash.test | drivers.test | data.test | tests.test) short=-test.short ;; esac # root has run them in full
		# Without strict mode: here a test that is root's alone may skip.
		# need.sh has made sure that FUSE itself is there.
		echo "   $p"
		(cd "$D/u/home" && setpriv --reuid 65534 --regid 65534 --clear-groups \
			env -i PATH="$PATH" HOME="$D/u/home" TMPDIR="$D/t" LAYERFS_TEST_DIR="$D/t" \
			LAYERFS_TEST_FIRST="${LAYERFS_TEST_FIRST:-}" LAYERFS_BIN="$D/u/layerfs" LAYERFS_FAULT_BIN="$D/u/layerfs-faults" "$D/u/$name" -test.timeout 10m -test.count 1 $short) || rc=1
	done
	return $rc
}

race() {
	local rc=0
	CGO_ENABLED=1 go build -race -o "$D/layerfs-race" ./cmd/layerfs
	# The daemon has no stderr: its reports go to files. It need not linger at
	# its end as the detector does by default.
	LAYERFS_BIN=$D/layerfs-race GORACE="halt_on_error=1 atexit_sleep_ms=0 log_path=$D/race" \
		go test -p 1 -count=1 -short -timeout 10m -run 'Random|Stress|Coheren|Parity|Plain|Exerciser|SymlinkRace|PoolKilled|Synced|SettleUnder|Readers|WalkSees|Passthrough' ./tests/... || rc=1
	if ls "$D"/race.* >/dev/null 2>&1; then
		head -100 "$D"/race.*
		rc=1
	fi
	return $rc
}

leftovers() {
	local left
	left=$(
		grep -F " $D/" /proc/self/mountinfo
		ps -eo stat,pid,args | awk '$1 !~ /^Z/' | grep -F "$D/" | grep -v grep
		losetup -a 2>/dev/null | grep -F "$D/"
		find "$D/t" -mindepth 1 -maxdepth 1
	) || true
	[ -z "$left" ] || { echo "left behind:"; echo "$left"; return 1; }
}

# shellcheck disable=SC2086 # a list of packages
leg "unit tests" go test $units
leg "vet with faults" go vet -tags faults ./internal/sys ./cmd/layerfs
# shellcheck disable=SC2086
leg "unit tests, race detector" env CGO_ENABLED=1 GORACE=atexit_sleep_ms=0 go test -race -short $units
leg "end to end as $(id -un)" go test -p 1 -count=1 -timeout 12m ./tests/...
leg "files in blocks" env LAYERFS_TEST_MOUNT=copyup=block,copyup_threshold=1 go test -p 1 -count=1 -short -timeout 12m -run 'Exerciser|Stress|Parity|Plain|Several' ./tests/data ./tests/parity
[ "$(id -u)" != 0 ] || leg "end to end as an ordinary user" as_user
leg "end to end, race detector" race
leg "nothing is left" leftovers

rm -rf "$D"
if [ -n "$failed" ]; then
	echo "FAILED: ${failed#, }"
	exit 1
fi
echo "ok: all tests passed in $SECONDS s"
