#!/usr/bin/env bash
# The long forms of the suites that `make test` runs short: hours, as root.
# soak.sh [parity|data|stubs|blockcopy|crash|pool|aufs|branchtools|security|resources|stress]... runs some of them.
set -eu
cd "$(dirname "$0")/.."
export LAYERFS_TEST_STRICT=1 LAYERFS_BIN=$PWD/bin/layerfs
failed=

run() {
	local name=$1 start=$SECONDS
	shift
	echo "== $name"
	if env "$@"; then echo "   $((SECONDS - start)) s"; else failed="$failed $name"; fi
}

test_of() { go test -count=1 -timeout 8h "$@"; }
export -f test_of

for suite in "${@:-parity data stubs blockcopy crash pool aufs branchtools security resources stress}"; do
	for s in $suite; do
		case $s in
		parity) run parity LAYERFS_TEST_OPS=1000000 bash -c 'test_of ./tests/parity' ;;
		data) run data LAYERFS_TEST_OPS=1000000 bash -c 'test_of ./tests/data' ;;
		stubs) # the same on files that were copied up by blocks
			run "parity, stubs" LAYERFS_TEST_MOUNT=copyup=block,copyup_threshold=1 LAYERFS_TEST_OPS=1000000 bash -c 'test_of ./tests/parity'
			run "data, stubs" LAYERFS_TEST_MOUNT=copyup=block,copyup_threshold=1 LAYERFS_TEST_OPS=1000000 bash -c 'test_of -run "Exerciser|Stress" ./tests/data'
			;;
		blockcopy) run blockcopy LAYERFS_TEST_KILLS=100 LAYERFS_TEST_DB=1024 LAYERFS_TEST_CUTS=100 bash -c 'test_of ./tests/blockcopy' ;;
		crash) run crash LAYERFS_TEST_FULL=1 LAYERFS_TEST_CUTS=200 bash -c 'test_of ./tests/crash' ;;
		pool)
			run "pool, crashes" LAYERFS_TEST_CUTS=200 bash -c 'test_of ./tests/pool'
			run "pool, model" LAYERFS_TEST_OPS=2000000 bash -c 'test_of -run TestModel ./blockstore'
			;;
		aufs) run aufs LAYERFS_TEST_CHANGES=1000 bash -c 'test_of ./tests/aufs' ;;
		branchtools) run branchtools LAYERFS_TEST_FULL=1 bash -c 'test_of ./tests/branchtools' ;;
		security) run security LAYERFS_TEST_SECONDS=60 bash -c 'test_of ./tests/security' ;;
		resources) run resources LAYERFS_TEST_FULL=1 bash -c 'test_of ./tests/resources' ;;
		stress) run stress tests/resources/stress.sh ;;
		*) echo "soak.sh: no suite $s" >&2; exit 2 ;;
		esac
	done
done
[ -z "$failed" ] || { echo "FAILED:$failed"; exit 1; }
