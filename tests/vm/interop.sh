#!/usr/bin/env bash
# interop.sh: the proof that a pool of layerfs and one of dm-thin are the same
# thing. layerfs fills a pool, a real kernel takes its data file over and
# changes it (guest.sh), layerfs takes it back. $LAYERFS is the program.
# shellcheck disable=SC2317 # step runs the functions
set -eu -o pipefail
export LC_ALL=C PATH=$PATH:/usr/sbin:/sbin
LAYERFS=$(realpath "${LAYERFS:-$(dirname "$0")/../../bin/layerfs}")
cd "$(dirname "$0")"
here=$PWD
# shellcheck source-path=SCRIPTDIR
. ./steps.sh

T=$(mktemp -d /var/tmp/layerfs-interop-XXXXXX)
cleanup() {
	cd /
	! mountpoint -q "$T/mnt" || "$LAYERFS" umount "$T/mnt" || umount -l "$T/mnt"
	ended || true
	rm -rf "$T"
}
# ended waits for the pools' processes, which outlive the last command by a
# moment.
ended() {
	local left
	for _ in {1..50}; do
		left=$(find /proc/[0-9]*/cwd -lname "$T/*" 2>/dev/null) || true
		[ -n "$left" ] || return 0
		sleep 0.1
	done
	same "processes in $T" "" "$left"
}
trap cleanup EXIT
trap 'exit 130' INT TERM HUP
cd "$T"
mkdir mnt guest

# Ids and blocks that the guest must know too.
cat >guest/places <<'END'
FS=0 RAW=1 SNAP=2 SNAPSNAP=3 KERNEL_SNAP=10 KERNEL_NEW=11
RAW_OWN=3 SHARED_BY_SNAPS=10 SNAPSNAP_OWN=20 SHARED_BY_ALL=50 UNMAPPED=150
END
# shellcheck source=/dev/null
. guest/places

pool() { "$LAYERFS" pool "$@"; }
thin() { "$LAYERFS" thin "$@"; }

# names POOL prints id and name of every device.
names() { thin ls "$1" | awk 'NR > 1 {print $1, $2}'; }

# name POOL ID
name() { names "$1" | awk -v id="$2" '$1 == id {print $2}'; }

sum() { sha256sum | cut -d ' ' -f 1; }

# core reads a pool's status line and prints length, transaction id and blocks.
core() { awk '{print $2, $4, $6}'; }

# mounted POOL COMMAND... runs a command while the devices are files in mnt.
mounted() {
	local rc
	pool mount "$1" mnt
	shift
	set +e
	(set -e; "$@")
	rc=$?
	set -e
	"$LAYERFS" umount mnt
	return $rc
}

# random DEVICE OFFSET LENGTH writes random bytes.
random() { head -c "$3" /dev/urandom | thin write pool "$1" "$2" "$3"; }

fill() {
	mkdir -p tree/gone
	cp -r "$here/../../blockstore" tree/source
	head -c 5000000 /dev/urandom >tree/random
	head -c 1000000 /dev/urandom >tree/gone/random
	(cd tree && find source random -type f -exec sha256sum {} + >sums)

	pool create pool --data-size 256M
	thin create pool fs --size 48M
	mounted pool mkfs.ext4 -q -d tree mnt/fs
	thin create pool raw --size 20972032 # 20 MiB and a sector
	random raw 12345 6000000
	random raw 20900000 72032
	thin snap pool raw snap
	random raw $((RAW_OWN * 65536 + 100)) 1000
	random snap $((SHARED_BY_SNAPS * 65536)) 65536
	thin snap pool snap snapsnap
	random snapsnap $((SNAPSNAP_OWN * 65536 + 1)) 131072
	random snapsnap 13107200 65536
	pool message pool "set_transaction_id 0 7"
	same "the devices" "$FS fs $RAW raw $SNAP snap $SNAPSNAP snapsnap" "$(names pool | xargs)"
}

# describe tells the guest what the pool is.
describe() {
	local id name line sectors
	cp "$here/steps.sh" "$here/conversation" guest
	cp "$here/guest.sh" guest/main
	names pool | while read -r id name; do
		line=$(thin status pool "$name")
		read -r _ sectors _ <<<"$line"
		echo "$line" >>guest/lines
		echo "$id $sectors $(thin read pool "$name" 0 $((sectors * 512)) | sum) $name" >>guest/devices
	done
	pool status --dm pool >>guest/lines
}

# make_metadata XML FILE
make_metadata() {
	truncate -s 4M "$2"
	thin_restore -i "$1" -o "$2"
	thin_check "$2"
}

export_pool() {
	describe
	pool dump --export pool >pool.xml
	make_metadata pool.xml metadata
}

# refused COMMAND...: an exported pool must not do it, and must say why.
refused() {
	local said
	if said=$("$@" 2>&1 <<<"some bytes"); then
		same "'$*' on an exported pool" "an error" "success"
	fi
	case $said in *exported*) ;; *) same "'$*': the error" "one about the pool being exported" "$said" ;; esac
}

fence() {
	refused thin write pool raw 0 10
	refused thin create pool other --size 1M
	refused thin snap pool raw other
	refused thin rm pool snap
	refused thin resize pool raw 30M
	refused pool message pool "create_thin 9"
	refused pool resize pool 1G
	refused pool trim pool # it would punch holes into the kernel's data
}

# results WORD prints what the guest said after that word.
results() { sed -n "s/^= $1 //p" guest.log; }

# like_guest POOL: every device is what the guest saw.
like_guest() {
	local id sum status
	same "the devices" "$FS fs $RAW raw $SNAPSNAP snapsnap $KERNEL_SNAP thin-$KERNEL_SNAP $KERNEL_NEW thin-$KERNEL_NEW" "$(names "$1" | xargs)"
	same "the transaction id" 42 "$(pool status --dm "$1" | awk '{print $4}')"
	same "the pool's length, transaction id and data blocks" "$(results pool | core)" "$(pool status --dm "$1" | core)"
	same "mapped and exclusive blocks of the devices" \
		"$(thin_ls --no-headers -o DEV,MAPPED_BLOCKS,EXCLUSIVE_BLOCKS metadata | awk '{print $1, $2, $3}')" \
		"$(thin ls --json "$1" | tr -d ' ",' | awk -F : '$1 == "id" {id = $2} $1 == "mapped_blocks" {m = $2} $1 == "exclusive_blocks" {print id, m, $2}')"
	# Nothing outside the kernel knew how large a device of its own is.
	for id in "$KERNEL_SNAP" "$KERNEL_NEW"; do
		thin resize "$1" "thin-$id" "$(($(results "device $id" | awk '{print $3}') * 512))"
	done
	results device | while read -r id sum status; do
		same "device $id" "$status" "$(thin status "$1" "$(name "$1" "$id")")"
	done
	mounted "$1" like_guest_inside "$1"
	pool check "$1"
}
like_guest_inside() {
	local id sum
	results device | while read -r id sum _; do
		same "the checksum of device $id" "$sum" "$(sum <"mnt/$(name "$1" "$id")")"
	done
	e2fsck -fn mnt/fs
	e2fsck -fn "mnt/thin-$KERNEL_SNAP"
}

take_back() {
	thin_check metadata
	thin_dump metadata >back.xml
	mkdir copy
	cp --sparse=always pool/data pool/data.json copy
	pool restore pool --data pool/data <back.xml
	like_guest pool
}

take_copy() {
	pool restore new --data copy/data <back.xml
	like_guest new
}

# go_on: what came back can be written, and sharing is still exact.
go_on() {
	local last before
	last=$(thin read pool snapsnap 0 20M | sum)
	before=$(pool status --dm pool | awk '{print $6}')
	random raw $(((SHARED_BY_ALL + 2) * 65536)) 4096
	random raw $((RAW_OWN * 65536)) 4096
	same "data blocks after a write to a shared block and to one of raw's own" "$((${before%/*} + 1))/${before#*/}" "$(pool status --dm pool | awk '{print $6}')"
	same "snapsnap" "$last" "$(thin read pool snapsnap 0 20M | sum)"
	pool dump pool >again.xml
	make_metadata again.xml again
}

# no_leak: blocks that the kernel freed, and did not clear, read as zeros where
# nothing was written.
no_leak() {
	thin create pool clean --size 16M
	truncate -s 16M clean
	mounted pool touch_blocks
	cmp clean <(thin read pool clean 0 16M)
}
touch_blocks() {
	local block file
	for block in {0..199}; do
		for file in clean mnt/clean; do
			echo x | dd of=$file bs=1 seek=$((block * 65536 + 5000)) conv=notrunc status=none
		done
	done
}

# restore_at_once: the process that served the last command must not be in the way.
restore_at_once() {
	pool create small --data-size 1M
	thin create small a --size 1M
	pool dump --export small >small.xml
	pool status --dm small
	pool restore small --data small/data <small.xml
}

docker_pair() {
	local root=docker/devicemapper name sum
	mkdir docker
	debugfs -R "rdump devicemapper docker" docker.img
	pool restore dockerpool --data $root/devicemapper/data --metadata $root/devicemapper/metadata
	same "the devices" "$(results docker | awk '{print NR, $1}')" "$(names dockerpool)"
	same "the pool's length, transaction id and data blocks" "$(results dockerpool | core)" "$(pool status --dm dockerpool | core)"
	results docker | while read -r name sum; do
		same "the size of $name" "0 65536 thin" "$(thin status dockerpool "$name" | cut -d ' ' -f 1-3)"
		same "the checksum of $name" "$sum" "$(thin read dockerpool "$name" 0 32M | sum)"
	done
	mounted dockerpool docker_inside
}
docker_inside() {
	local name
	for name in mnt/*; do e2fsck -fn "$name"; done
	name=$(results docker | awk 'END {print $1}')
	same "the file system of $name" "the base the image the container" "$(debugfs -R 'cat rootfs/story' "mnt/$name" | xargs)"
}

do_new() {
	partner="partner ${1:-plain}"
	# dm-thin's features are our options with other dashes
	# shellcheck disable=SC2046 # words
	pool create "$partner" --data-size 16M $(for word in $1; do echo "--${word//_/-}"; done)
}
do_readonly() { pool dump --export "$partner" >partner.xml; }
do_fill() {
	thin resize "$partner" thin-0 32M
	if thin write "$partner" thin-0 0 32M </dev/zero; then return 1; fi
}
do_status() { pool status --dm "$partner"; }
do_message() { pool message "$partner" "$1"; }
conversation() {
	converse guest/conversation >said
	diff <(results said) said || same "what layerfs says" "what the kernel says" "the lines above, < the kernel's"
}

step "layerfs fills a pool" fill
step "layerfs exports it, thin_restore and thin_check take it" export_pool
step "an exported pool refuses changes" fence
truncate -s 128M docker.img
mkfs.ext4 -q docker.img
rc=0
"$here/run-in-vm.sh" guest pool/data metadata docker.img >guest.log || rc=$?
grep -v '^= ' guest.log || true
[ "$rc" -lt 124 ] || { echo "FAILED  the guest: exit status $rc" && exit 1; }
failed=$((failed + rc)) # the exit status is how many of the guest's steps failed
step "layerfs takes back what the kernel wrote" take_back
step "a new pool takes a copy of it" take_copy
step "the pool goes on, and is dm-thin's again" go_on
step "what the kernel deleted does not show" no_leak
step "a pool is restored right after another command" restore_at_once
step "layerfs reads Docker's loop files" docker_pair
step "messages and status lines are the kernel's" conversation
step "no pool's process is left" ended
[ "$failed" = 0 ] || { echo "FAILED: $failed" && exit 1; }
echo "ok: a pool of layerfs is a pool of dm-thin ($SECONDS s)"
