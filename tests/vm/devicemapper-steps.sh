# devicemapper-steps.sh: what is tried in the guest, in a Debian. vdb (1 GiB) and vdc (64
# MiB) are empty disks for pools of devices.
# shellcheck shell=bash disable=SC2317 # step runs the functions
set -u
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C DM_DISABLE_UDEV=1
cd /layerfs || exit
T=/tmp
. ./steps.sh
L=/layerfs/layerfs
mkdir -p /var/tmp/t /w/image/etc
echo "hello" >/w/image/etc/motd
tar -C /w/image -cf /w/image.tar .

# dm OPTION... -- ARGUMENT...: layerfs on the store /w/s with dm.OPTIONs.
dm() {
	local flags=()
	while [ "$1" != -- ]; do flags+=(--storage-opt "dm.$1") && shift; done
	shift
	"$L" --root /w/s --driver devicemapper "${flags[@]}" "$@" 2> >(grep -v loopback >&2)
}
small="basesize=64M loopdatasize=1G loopmetadatasize=16M"

# over takes the store away.
over() {
	dm -- container ls | awk 'NR > 1 {print $1}' | while read -r c; do dm -- container rm -f "$c"; done
	dm -- device deactivate
	rm -rf /w/s
	same "what is left" "" "$(dmsetup ls | grep layerfs; losetup -a)"
}

# refused CODE TEXT dm…: the command fails so.
refused() {
	local code=$1 text=$2 rc=0
	shift 2
	"$@" >"$T/said" 2>&1 || rc=$?
	same "the exit code of $*" "$code" "$rc"
	grep -qF "$text" "$T/said" || same "the message of $*" "$text" "$(cat "$T/said")"
}

# used prints a field of info.
field() { dm -- info | sed -n "s/^ $1: //p"; }

# conformance [PATTERN]: the suite of tests/drivers. Commands are killed at all moments when
# /layerfs/full says so, at some otherwise.
conformance() {
	local full limit=30m
	full=$(cat full)
	[ -z "$full" ] || limit=6h
	LAYERFS_TEST_DRIVERS=devicemapper LAYERFS_FAULT_BIN=/layerfs/layerfs-faults LAYERFS_TEST_DIR=/var/tmp/t \
		LAYERFS_TEST_FULL=$full LAYERFS_TEST_STEP=23 ./drivers.test -test.v -test.timeout $limit -test.run "${1:-TestSame|TestApart|TestMounting|TestEmpty|TestUsage|TestOptions|TestSize}" \
		-test.skip 'Full|Auto|BadInput|Hostile|MovedName|Nested|Damaged|UnmountedByHand' >out 2>&1 || {
		grep -av -e '^ok' -e '^===' out | cut -c1-300 | head -150
		return 1
	}
}

# Commands that die at any moment, or just when the kernel has half of something.
killed() {
	if [ -n "$(cat full)" ]; then
		conformance TestKilled
	else
		conformance 'TestKilled(|First|Activating|Growing|Between|Reading)$'
	fi
	local kills
	kills=$(grep -ac 'killed before' out)
	echo "        $kills kills" >&3
}

# fresh takes away what a step that failed has left.
fresh() {
	grep -o ' /w/[^ ]*' /proc/mounts | sort -r | while read -r m; do umount -l "$m"; done
	dmsetup remove_all -f
	losetup -D
	rm -rf /w/s
}

on_disks() { LAYERFS_TEST_STORAGE_OPT="dm.datadev=/dev/vdb dm.metadatadev=/dev/vdc" conformance 'TestSame|TestMounting|TestOneBlock'; }

with_udevd() {
	/lib/systemd/systemd-udevd --daemon
	udevadm trigger
	udevadm settle
	(unset DM_DISABLE_UDEV && conformance 'TestSame|TestMounting|TestApart')
	local rc=$?
	pkill -x systemd-udevd || pkill udevd
	return $rc
}

# What Docker's driver has left in loop files is read, and an image of it imported.
stranded() {
	# shellcheck disable=SC2086
	filled $small
	echo old >"$M/etc/release"
	dm -- container umount c
	local id
	id=$("$L" --root /w/s container ls --json 2>/dev/null | grep -o '"tree": "[^"]*"' | cut -d'"' -f4)
	dm -- device deactivate
	mkdir /w/docker /w/dev /w/old
	mv /w/s/devicemapper/devicemapper/data /w/s/devicemapper/devicemapper/metadata /w/docker
	"$L" pool restore /w/pool --data /w/docker/data --metadata /w/docker/metadata
	"$L" pool mount /w/pool /w/dev
	mount -o loop /w/dev/thin-2 /w/old # 0 is the base device, 1 the image
	tar -C /w/old/rootfs -cf - . | "$L" --root /w/new --driver vfs layer import old -
	umount /w/old
	"$L" umount /w/dev
	"$L" --root /w/new container create --from old c
	same "what $id had" old "$(cat "$("$L" --root /w/new container mount c)/etc/release")"
	rm -rf /w/new /w/pool /w/docker /w/dev /w/old /w/s
}

# try NAME FUNCTION: a step that begins with nothing.
try() {
	fresh >/dev/null 2>&1
	step "$@"
}

# filled makes a store with a layer and a mounted container.
filled() {
	dm "$@" -- layer import image /w/image.tar
	dm -- container create --from image c
	M=$(dm -- container mount c)
}

devices() {
	filled datadev=/dev/vdb metadatadev=/dev/vdc basesize=64M
	same "the data file" /dev/vdb "$(field 'Data file')"
	refused 2 "cannot be changed" dm datadev=/dev/vda metadatadev=/dev/vdc -- info
	refused 2 "together" dm datadev=/dev/vdb -- info
	echo x >"$M/new"
	dm -- container umount c
	over
	thin_check /dev/vdc
}

thinpooldev() {
	dd if=/dev/zero of=/dev/vdc bs=4k count=1 2>/dev/null
	dmsetup create mine --table "0 $(blockdev --getsz /dev/vdb) thin-pool /dev/vdc /dev/vdb 256 0"
	refused 3 "no such device" dm thinpooldev=yours -- info
	filled thinpooldev=/dev/mapper/mine basesize=64M
	same "the pool" mine "$(field 'Pool Name')"
	same "its blocks" 131.1kB "$(field 'Pool Blocksize')"
	dm -- container rm -f c
	dm -- layer rm image
	dm -- device deactivate
	rm -rf /w/s
	refused 2 "already has used data blocks" dm thinpooldev=mine -- info
	dmsetup remove mine
	rm -rf /w/s
}

file_system() {
	# shellcheck disable=SC2086
	filled fs=xfs basesize=400M loopdatasize=2G loopmetadatasize=16M mkfsarg=-Lnamed mountopt=noatime xfs_nospace_max_retries=0
	grep " $M xfs .*noatime" /proc/mounts || same "the mount" xfs "$(grep "$M" /proc/mounts)"
	same "the label" named "$(blkid -p -s LABEL -o value "$(grep " $M " /proc/mounts | cut -d' ' -f1)")"
	same "the file system" xfs "$(field 'Backing Filesystem')"
	same "retries" 0 "$(cat /sys/fs/xfs/dm-*/error/metadata/ENOSPC/max_retries)"
	dm -- container commit c again
	dm -- container create --from again d
	same "what an xfs snapshot has" hello "$(cat "$(dm -- container mount d)/etc/motd")"
	over
	refused 2 "Unsupported filesystem btrfs" dm fs=btrfs -- info
	rm -rf /w/s
}

base_size() {
	# shellcheck disable=SC2086
	filled $small blocksize=128K
	same "the blocks" 131.1kB "$(field 'Pool Blocksize')"
	dm basesize=128M -- container create d
	[ "$(df -k --output=size "$(dm -- container mount d)" | tail -1)" -gt 80000 ] || same "the size" 128M "$(df -k)"
	same "the base device" 134.2MB "$(field 'Base Device Size')"
	refused 2 "cannot be smaller" dm basesize=32M -- info
	over
}

minimum_free() {
	local n=0
	# shellcheck disable=SC2086
	filled basesize=64M loopdatasize=100M loopmetadatasize=16M
	head -c 40M /dev/urandom >"$M/big"
	sync -f "$M"
	dm min_free_space=10 -- container create a # without the percent sign, as some guides have it
	refused 5 "which is less than minimum required 960 free data blocks. Create more free space in thin pool or use dm.min_free_space option to change behavior" dm min_free_space=60% -- container create d
	refused 2 "Invalid value 100% for option dm.min_free_space" dm min_free_space=100% -- info
	dm min_free_space=0% -- container create d
	dm -- container ls | grep -q '^d ' || same "d" "d" ""
	over
}

# A pool that is full: who writes is told in bounded time, removing works, and growing
# wakes who waits.
full() {
	echo 4 >/sys/module/dm_thin_pool/parameters/no_space_timeout
	# shellcheck disable=SC2086
	filled basesize=200M loopdatasize=64M loopmetadatasize=16M min_free_space=0
	local rc=0 start=$SECONDS
	timeout 60 sh -c "head -c 100M /dev/urandom >$M/big && sync -f $M" 2>/dev/null || rc=$?
	[ $rc != 0 ] && [ $rc != 124 ] && [ $((SECONDS - start)) -lt 50 ] || same "a write that does not fit" "a failure" "$rc after $((SECONDS - start)) s"
	dm -- container rm -f c
	dm -- container create --from image d
	M=$(dm -- container mount d)
	echo 0 >/sys/module/dm_thin_pool/parameters/no_space_timeout # for ever
	(head -c 90M /dev/urandom >"$M/big" && sync -f "$M" && touch /w/done) &
	sleep 5
	[ ! -e /w/done ] || same "the writer" waits "has ended"
	dm -- device resize 256M
	wait
	[ -e /w/done ] || same "the writer" "has ended" "has failed"
	refused 2 "Can't shrink file" dm -- device resize 32M
	echo 60 >/sys/module/dm_thin_pool/parameters/no_space_timeout
	dm -- container umount d
	M=$(dm -- container mount d)
	same "what was written" 94371840 "$(stat -c %s "$M/big")"
	over
	rm /w/done
}

# A device that somebody holds open.
held() {
	# shellcheck disable=SC2086
	filled $small
	local node
	node=$(readlink -f "$(grep " $M " /proc/mounts | cut -d' ' -f1)")
	exec 7<"$node"
	refused 4 "busy" dm -- container umount c
	exec 7<&-
	dm -- container umount c
	M=$(dm -- container mount c)
	exec 7<"$(readlink -f "$(grep " $M " /proc/mounts | cut -d' ' -f1)")"
	dm use_deferred_removal=true -- container umount c
	dm use_deferred_removal=true use_deferred_deletion=true -- container rm c
	same "to be deleted later" 1 "$(field 'Deferred Deleted Device Count')"
	exec 7<&-
	sleep 1
	dm -- container ls >/dev/null
	same "to be deleted later" 0 "$(field 'Deferred Deleted Device Count')"
	refused 2 "deferred removal is not enabled" dm use_deferred_deletion=true -- info
	over
}

# A pool whose metadata was replaced behind our back is not touched.
another_pool() {
	# shellcheck disable=SC2086
	filled $small
	dm -- container umount c
	dm -- device deactivate
	cp /w/s/devicemapper/devicemapper/metadata /w/older
	dm -- container create d
	dm -- device deactivate
	cp /w/older /w/s/devicemapper/devicemapper/metadata
	refused 6 "it is another pool, or has lost changes" dm -- info
	dmsetup remove "$(dmsetup ls | grep -o '^layerfs-[^	 ]*-pool')"
	losetup -D
	rm -rf /w/s /w/older
}

lvm_device() {
	mkdir -p /etc/lvm
	printf 'devices { obtain_device_list_from_udev=0 external_device_info_source="none" }\nactivation { udev_sync=0 udev_rules=0 verify_udev_operations=0 monitoring=0 }\n' >/etc/lvm/lvm.conf
	mkfs.ext4 -q -F /dev/vdb
	refused 2 "need dm.directlvm_device" dm thinp_percent=90 -- info
	refused 2 "more than 100 together" dm directlvm_device=/dev/vdb thinp_percent=99 thinp_metapercent=2 -- info
	refused 4 "has a filesystem (ext4), use dm.directlvm_device_force=true" dm directlvm_device=/dev/vdb -- info
	filled directlvm_device=/dev/vdb directlvm_device_force=true thinp_percent=90 thinp_metapercent=2 thinp_autoextend_threshold=70 thinp_autoextend_percent=30 basesize=64M
	same "the pool" layerfs-thinpool "$(field 'Pool Name')"
	same "its blocks" 524.3kB "$(field 'Pool Blocksize')"
	grep thin_pool_autoextend_threshold=70 /etc/lvm/profile/layerfs-thinpool.profile
	grep thin_pool_autoextend_percent=30 /etc/lvm/profile/layerfs-thinpool.profile
	refused 2 "cannot be changed" dm directlvm_device=/dev/vdc -- info
	echo x >"$M/new"
	dm -- container rm -f c
	dm -- layer rm image
	dm -- device deactivate
	vgremove -q -f -y layerfs
	pvremove -q /dev/vdb
	rm -rf /w/s
}

# A store of the driver thin becomes one of devicemapper, and comes back.
moves() {
	local before
	thin() { "$L" --root /w/s --storage-opt dm.basesize=64M "$@" 2> >(grep -v loopback >&2); }
	thin --driver thin layer import image /w/image.tar
	for c in a b c; do
		thin container create --from image $c
		M=$(thin container mount $c)
		echo "I am $c" >"$M/who"
		rm -rf "$M/etc"
		head -c 300K /dev/urandom >"$M/data"
		thin container umount $c
	done
	thin container commit c image2
	before=$(trees)
	refused 2 "has driver thin already" "$L" --root /w/s device convert --to thin
	thin container mount a >/dev/null
	refused 4 "unmount it first" "$L" --root /w/s device convert --to devicemapper
	thin container umount a
	"$L" --root /w/s device convert --to devicemapper
	same "the driver" devicemapper "$(thin info | sed -n 's/^Storage Driver: //p')"
	same "the trees" "$before" "$(trees)"
	echo more >>"$(thin container mount b)/who"
	thin container umount b
	thin container create --from image2 d
	thin container rm a
	before=$(trees)
	"$L" --root /w/s device convert --to thin
	same "the driver" thin "$(thin info | sed -n 's/^Storage Driver: //p')"
	same "the trees after the way back" "$before" "$(trees)"
	same "what d has" "I am c" "$(cat "$(thin container mount d)/who")"
	thin container rm -f b c d
	thin layer rm image2 image
	rm -rf /w/s
}

# trees prints every container of the store with all that it has.
trees() {
	thin container ls | awk 'NR > 1 {print $1}' | while read -r c; do
		M=$(thin container mount "$c")
		(cd "$M" && find . -type f -exec sha256sum {} + | sort -k 2)
		thin container umount "$c"
	done
}

# What a container costs, beside kernel overlay on the same machine, and whether that grows
# with their number.
costs() {
	local n=20
	[ -z "$(cat full)" ] || n=1000
	mkdir /w/bench
	./containerbench -dir /w/bench -tree /w/image -layerfs "$L" -made "devicemapper overlay" -containers $n >table 2>err || { cat err && return 1; }
	sed 's/^/        /' table >&3
	"$L" --root /w/bench/devicemapper device deactivate
	rm -rf /w/bench
}

exec 3>&1
pattern=$(cat pattern)
if declare -F "$pattern" >/dev/null; then
	try "$pattern" "$pattern"
	exit $failed
fi
step "the conformance suite on loop files" conformance "$pattern"
if [ -n "$pattern" ]; then
	[ $failed != 0 ] || grep -av '^===' out
	exit $failed
fi
try "commands that are killed" killed
try "the same on disks" on_disks
try "the same while udevd runs" with_udevd
try "what Docker has left" stranded
try "two devices as a pool" devices
try "somebody else's pool" thinpooldev
try "an empty device for LVM" lvm_device
try "xfs, mkfs and mount options" file_system
try "sizes of blocks and of the base device" base_size
try "minimum free space" minimum_free
try "a full pool" full
try "a device that is held" held
try "metadata that was replaced" another_pool
try "from thin to devicemapper and back" moves
try "what containers cost" costs
exit $failed
