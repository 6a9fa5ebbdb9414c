# devicemapper-steps.sh: what is tried in the guest, in a Debian. vdb and vdc are empty
# disks for pools of devices.
# shellcheck shell=bash disable=SC2317 # step runs the functions
set -u
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root DM_DISABLE_UDEV=1
cd /layerfs
T=/tmp
. ./steps.sh
L=/layerfs/layerfs
mkdir -p /var/tmp/t

# conformance runs the suite of tests/drivers.
conformance() {
	local pattern
	pattern=$(cat pattern)
	LAYERFS_TEST_DRIVERS=devicemapper LAYERFS_FAULT_BIN=/layerfs/layerfs-faults LAYERFS_TEST_DIR=/var/tmp/t \
		./drivers.test -test.timeout 30m -test.run "${pattern:-.}" -test.skip 'Full|Auto|BadInput|Hostile|MovedName|Nested|Damaged|UnmountedByHand' >out 2>&1 || { grep -v '^ok' out | cut -c1-300 | head -80; return 1; }
	tail -1 out
}

step "the conformance suite on loop files" conformance
exit $failed
