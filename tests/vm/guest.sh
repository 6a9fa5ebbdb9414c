#!/bin/sh
# guest.sh: the half of the proof that runs in the guest, on real dm-thin. vda
# and vdb are data and metadata of the pool that layerfs exported, vdc is an
# ext4 for Docker's files. From interop.sh come the files places (ids and
# blocks), devices (id, sectors, checksum, name) and lines (what layerfs says
# that the kernel will); what it is to know goes to results.
# shellcheck shell=dash disable=SC2317 # busybox is like dash; step runs the functions
set -eu
T=/tmp
# shellcheck source-path=SCRIPTDIR
. ./steps.sh
# shellcheck source=/dev/null
. ./places

sum() { sha256sum <"/dev/mapper/$1" | cut -d ' ' -f 1; }

# used prints how many data blocks are in use, after a commit.
used() { dmsetup status pool | awk '{split($6, n, "/"); print n[1]}'; }

# thin ID SECTORS activates a device.
thin() { dmsetup create "thin-$1" --table "0 $2 thin /dev/mapper/pool $1"; }

message() { dmsetup message pool 0 "$1"; }

kernel_reads() {
	local id sectors sum name
	dmsetup create pool --table "0 $(blockdev --getsz /dev/vda) thin-pool /dev/vdb /dev/vda 128 0"
	same "the pool's length, transaction id and data blocks" "$(awk '$3 == "thin-pool" {print $2, $4, $6}' lines)" \
		"$(dmsetup status pool | awk '{print $2, $4, $6}')"
	while read -r id sectors sum name; do
		thin "$id" "$sectors"
		same "the checksum of $name" "$sum" "$(sum "thin-$id")"
	done <devices
	same "the devices' status lines" "$(grep ' thin ' lines)" "$(while read -r id _; do dmsetup status "thin-$id"; done <devices)"
}

# writes ID BLOCK COST: 4 KiB written to the block take COST new blocks.
writes() {
	local before
	before=$(used)
	dd if=/dev/urandom "of=/dev/mapper/thin-$1" bs=4k count=1 seek=$(($2 * 16 + 5)) oflag=direct conv=notrunc 2>/dev/null
	same "new blocks for a write to block $2 of device $1" "$3" "$(($(used) - before))"
}

exact_sharing() {
	local middle last
	middle=$(sum "thin-$SNAP") last=$(sum "thin-$SNAPSNAP")
	writes "$RAW" "$RAW_OWN" 0
	writes "$RAW" "$SHARED_BY_ALL" 1
	writes "$RAW" "$UNMAPPED" 1
	same "the last snapshot after writes to the first origin" "$last" "$(sum "thin-$SNAPSNAP")"
	writes "$SNAPSNAP" "$SNAPSNAP_OWN" 0
	writes "$SNAPSNAP" "$SHARED_BY_SNAPS" 1
	same "the snapshot after writes to its origin and to its own" "$middle" "$(sum "thin-$SNAP")"
}

file_system() {
	local before
	mount -t ext4 "/dev/mapper/thin-$FS" /mnt
	(cd /mnt && sha256sum -s -c sums)
	dd if=/dev/urandom of=/mnt/by-the-guest bs=1M count=4 2>/dev/null
	rm -r /mnt/gone
	sync
	# to suspend the device freezes the file system: its snapshot is clean
	dmsetup suspend "thin-$FS"
	message "create_snap $KERNEL_SNAP $FS"
	dmsetup resume "thin-$FS"
	dd if=/dev/urandom of=/mnt/later bs=1M count=3 2>/dev/null
	sync
	before=$(used)
	rm /mnt/later
	sync # only then does ext4 hold its blocks for free
	fstrim /mnt
	same "is space free after rm and fstrim" yes "$([ "$(used)" -lt "$before" ] && echo yes)"
	umount /mnt
	thin "$KERNEL_SNAP" "$(awk -v id="$FS" '$1 == id {print $2}' devices)"
}

changes() {
	local before id
	before=$(used)
	blkdiscard -o $((SNAPSNAP_OWN * 65536)) -l 65536 "/dev/mapper/thin-$SNAPSNAP"
	same "used blocks after the discard of one's own" $((before - 1)) "$(used)"
	blkdiscard -o $(((SHARED_BY_ALL + 1) * 65536)) -l 65536 "/dev/mapper/thin-$SNAPSNAP"
	same "used blocks after the discard of a shared one" $((before - 1)) "$(used)"
	message "create_thin $KERNEL_NEW"
	thin "$KERNEL_NEW" 16384
	dd if=/dev/urandom "of=/dev/mapper/thin-$KERNEL_NEW" bs=1000 seek=3001 count=1000 conv=notrunc,fsync 2>/dev/null
	dmsetup remove "thin-$SNAP"
	message "delete $SNAP"
	# what this leaves in free blocks must never be seen again
	message "create_thin 12"
	thin 12 16384
	dd if=/dev/urandom of=/dev/mapper/thin-12 bs=64k count=128 conv=notrunc,fsync 2>/dev/null
	dmsetup remove thin-12
	message "delete 12"
	message "set_transaction_id 7 42"
	echo 3 >/proc/sys/vm/drop_caches
	for id in "$FS" "$RAW" "$SNAPSNAP" "$KERNEL_SNAP" "$KERNEL_NEW"; do
		echo "device $id $(sum "thin-$id") $(dmsetup status "thin-$id")"
	done >>results
	echo "pool $(dmsetup status pool)" >>results
}

# loop FILE prints a loop device over it.
loop() {
	local device
	device=$(losetup -f)
	losetup "$device" "$1"
	echo "$device"
}

# docker_device ID NAME TEXT [ORIGIN NAME-OF-ORIGIN] makes a device, puts TEXT
# into its file system and leaves the file that the driver would.
docker_device() {
	if [ $# = 3 ]; then
		dmsetup message docker 0 "create_thin $1"
	else
		dmsetup suspend "$5"
		dmsetup message docker 0 "create_snap $1 $4"
		dmsetup resume "$5"
	fi
	dmsetup message docker 0 "set_transaction_id $(($1 - 1)) $1"
	dmsetup create "$2" --table "0 65536 thin /dev/mapper/docker $1"
	# by its path: busybox prefers its own mke2fs
	[ $# != 3 ] || /bin/mke2fs -q -t ext4 -E nodiscard,lazy_itable_init=0,lazy_journal_init=0 "/dev/mapper/$2"
	mount -t ext4 "/dev/mapper/$2" /tmp/fs
	mkdir -p /tmp/fs/rootfs
	echo "$3" >>/tmp/fs/rootfs/story
	dd if=/dev/urandom of=/tmp/fs/rootfs/changes bs=100k count=11 2>/dev/null
	dd if=/dev/urandom "of=/tmp/fs/rootfs/stays-$1" bs=1k count=700 2>/dev/null
	umount /tmp/fs
	printf '{"device_id":%d,"size":33554432,"transaction_id":%d,"initialized":false,"deleted":false}' "$1" "$1" >"/mnt/devicemapper/metadata/$2"
}

# docker does as Docker's devicemapper driver without a block device of its
# own: a base device, an image's layer on it, a container's on that.
docker() {
	local data metadata image container name
	mount -t ext4 /dev/vdc /mnt
	mkdir -p /mnt/devicemapper/devicemapper /mnt/devicemapper/metadata /tmp/fs
	truncate -s 64M /mnt/devicemapper/devicemapper/data
	truncate -s 2M /mnt/devicemapper/devicemapper/metadata
	data=$(loop /mnt/devicemapper/devicemapper/data)
	metadata=$(loop /mnt/devicemapper/devicemapper/metadata)
	dmsetup create docker --table "0 131072 thin-pool $metadata $data 128 32768 1 skip_block_zeroing"
	image=$(echo image | sha256sum | cut -d ' ' -f 1)
	container=$(echo container | sha256sum | cut -d ' ' -f 1)
	docker_device 1 base "the base"
	docker_device 2 "$image" "the image" 1 base
	docker_device 3 "$container" "the container" 2 "$image"
	cd /mnt/devicemapper/metadata
	printf '{"next_device_id":3,"BaseDeviceUUID":"2af1","BaseDeviceFilesystem":"ext4"}' >deviceset-metadata
	printf '{"open_transaction_id":3,"device_hash":"%s","device_id":3}' "$container" >transaction-metadata
	cd /guest
	for name in base "$image" "$container"; do
		echo "docker $name $(sum "$name")" >>results
		dmsetup remove "$name"
	done
	echo "dockerpool $(dmsetup status docker)" >>results
	dmsetup remove docker
	losetup -d "$data"
	losetup -d "$metadata"
	umount /mnt
}

do_new() {
	[ ! -e /dev/mapper/partner ] || dmsetup remove partner
	rm -f /tmp/data /tmp/metadata
	truncate -s 16M /tmp/data
	truncate -s 2M /tmp/metadata
	partner="$(loop /tmp/metadata) $(loop /tmp/data)"
	dmsetup create partner --table "0 32768 thin-pool $partner 128 0 $(echo "$1" | wc -w) $1"
}
do_readonly() {
	dmsetup suspend partner
	dmsetup reload partner --table "0 32768 thin-pool $partner 128 0 1 read_only"
	dmsetup resume partner
}
do_fill() {
	dmsetup create full --table "0 65536 thin /dev/mapper/partner 0"
	dd if=/dev/zero of=/dev/mapper/full bs=64k count=512 oflag=direct 2>/dev/null && return 1
	dmsetup remove full
}
do_status() { dmsetup status partner; }
do_message() { dmsetup message partner 0 "$1"; }
conversation() {
	converse conversation >said
	sed 's/^/said /' said >>results
	dmsetup remove partner
}

step "guest: the kernel reads what layerfs wrote" kernel_reads
step "guest: one's own block is written in place, a shared one is copied" exact_sharing
step "guest: ext4 is written, snapshotted, trimmed" file_system
step "guest: discards, a new device, one deleted, a new transaction id" changes
step "guest: Docker's loop files" docker
step "guest: the kernel's half of the conversation" conversation
dmsetup remove_all
sed 's/^/= /' results
exit "$failed"
