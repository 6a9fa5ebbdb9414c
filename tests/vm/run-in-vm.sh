#!/usr/bin/env bash
# run-in-vm.sh DIR [DISK]...: boots Debian's cloud kernel in QEMU, without KVM,
# and runs DIR/main in a copy of DIR there, as root: a script for busybox's sh,
# which finds busybox, dmsetup and mke2fs. Some modules are not loaded: /modules/NAME
# lists the files to insmod for NAME. The raw images DISK are /dev/vda,
# /dev/vdb and so on; what the guest writes to them stays. Its output and exit
# status are the script's; 124 says that it took longer than $VM_SECONDS, 125
# that the guest or its kernel failed.
#
# The kernel's package is downloaded and unpacked, never installed. It and the
# initramfs stay in $VM_CACHE.
set -eu -o pipefail
export LC_ALL=C PATH=$PATH:/usr/sbin:/sbin

CACHE=${VM_CACHE:-/var/tmp/layerfs-vm}
MODULES="virtio_pci virtio_blk loop dm-thin-pool"
LATER="fuse overlay xfs"

die() {
	echo "run-in-vm: $1" >&2
	exit 125
}

# fetch_kernel unpacks the kernel's package into $CACHE/kernel.
fetch_kernel() {
	local new=$CACHE/kernel.new package log
	[ ! -e "$CACHE/kernel" ] || return 0
	package=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image-/ {print $2; exit}')
	[ -n "$package" ] || die "apt knows no linux-image-cloud-amd64: it takes Debian on amd64, and apt-get update"
	rm -rf "$new"
	mkdir -p "$new/deb"
	log=$(cd "$new/deb" && apt-get -qq download "$package" 2>&1) || die "cannot download $package: $log"
	dpkg-deb -x "$new"/deb/*.deb "$new"
	rm -r "$new/deb"
	depmod -b "$new" "$(ls "$new/lib/modules")" # the package's postinst would
	mv "$new" "$CACHE/kernel"
}

# add ROOT PROGRAM copies a program into ROOT/bin, and the libraries it needs.
add() {
	local file
	cp -L --remove-destination "$(command -v "$2")" "$1/bin/$2"
	for file in $(ldd "$1/bin/$2" 2>/dev/null | grep -o '/[^ ]*'); do
		mkdir -p "$1${file%/*}"
		cp -L "$file" "$1$file"
	done
}

pack() { (cd "$1" && find . | cpio -o -H newc -R 0:0 --quiet); }

# modules ROOT LIST NAME... copies modules and those they need, and lists them.
modules() {
	local root=$1 list=$2 name module
	shift 2
	for name; do
		modprobe -d "$CACHE/kernel" -S "$version" -D "$name" || die "the kernel has no $name"
	done | awk '$1 == "insmod" && !seen[$2]++ {print $2}' | while read -r module; do
		cp "$module" "$root/modules"
		echo "${module##*/}" >>"$root/modules/$list"
	done
}

# build_base makes the initramfs $base. Its name says what it was made with.
build_base() {
	local root version name
	base=$CACHE/base-$(cat "$0" "$CACHE"/kernel/boot/config-* | sha256sum | head -c 16).cpio
	[ ! -e "$base" ] || return 0
	rm -rf "$CACHE"/base-* "$CACHE/root"
	root=$CACHE/root
	mkdir -p "$root"/{bin,dev,etc,mnt,modules,proc,sys,tmp}
	busybox --list | while read -r name; do ln -s busybox "$root/bin/$name"; done
	for name in busybox dmsetup mke2fs; do add "$root" "$name"; done
	cp /etc/mke2fs.conf "$root/etc"
	version=$(ls "$CACHE/kernel/lib/modules")
	# shellcheck disable=SC2086 # words
	modules "$root" order $MODULES
	for name in $LATER; do modules "$root" "$name" "$name"; done
	cat >"$root/init" <<-'INIT'
		#!/bin/sh
		export PATH=/bin DM_DISABLE_UDEV=1 # nobody else makes the nodes in /dev/mapper
		mount -t devtmpfs dev /dev
		mount -t proc proc /proc
		mount -t sysfs sys /sys
		mount -t tmpfs tmp /tmp
		while read -r m; do insmod "/modules/$m"; done </modules/order
		stty -F /dev/ttyS1 raw
		cd /guest && setsid sh ./main </dev/null >/dev/ttyS1 2>&1
		status=$?
		sync
		dmesg | grep -E 'WARNING: CPU|BUG:|Oops|general protection|blocked for more than|soft lockup' | sed 's/^/complaint: /'
		echo "exit status $status"
		poweroff -f
	INIT
	chmod 755 "$root/init"
	pack "$root" >"$base.new"
	mv "$base.new" "$base"
	rm -rf "$root"
}

dir=$1
shift
mkdir -p "$CACHE"
exec 9>"$CACHE/lock"
flock 9
fetch_kernel
build_base

W=$(mktemp -d "${TMPDIR:-/tmp}/layerfs-vm-XXXXXX")
qemu=
trap '[ -z "$qemu" ] || kill "$qemu" 2>/dev/null || true; rm -rf "$W"' EXIT
trap 'exit 130' INT TERM HUP
mkdir "$W/files"
cp -RL "$dir" "$W/files/guest"
{ cat "$base"; pack "$W/files"; } >"$W/initrd"
exec 9>&-

drives=()
for disk; do drives+=(-drive "if=virtio,file=$disk,format=raw,cache=unsafe,discard=unmap"); done
# ttyS0 is the console and init's, ttyS1 the script's.
timeout "${VM_SECONDS:-150}" qemu-system-x86_64 -nodefaults -no-user-config -display none -monitor none -no-reboot \
	-M pc,usb=off,hpet=off -accel tcg -cpu max -m "${VM_MEMORY:-512}" \
	-kernel "$CACHE"/kernel/boot/vmlinuz-* -initrd "$W/initrd" \
	-append "console=ttyS0 quiet panic=-1 nokaslr mitigations=off tsc=reliable no_timer_check random.trust_cpu=on" \
	-serial "file:$W/console" -serial "file:$W/out" "${drives[@]}" </dev/null &
qemu=$!
rc=0
wait "$qemu" || rc=$?
qemu=
[ ! -e "$W/out" ] || cat "$W/out"
case $rc in
0) ;;
124) echo "run-in-vm: stopped after ${VM_SECONDS:-150} s" >&2 && exit 124 ;;
*) die "QEMU failed: exit status $rc" ;;
esac
tr -d '\r' <"$W/console" >"$W/log"
! grep '^complaint: ' "$W/log" >&2 || die "the guest's kernel complains"
status=$(sed -n 's/^exit status //p' "$W/log")
[ -n "$status" ] || { tail -30 "$W/log" >&2 && die "the guest died; above are its last words"; }
exit "$status"
