#!/usr/bin/env bash
# need.sh demo|test|bench: installs the Debian packages that a target lacks
# (as root; otherwise it says which they are) and opens /dev/fuse to everybody.
set -eu

case ${1:-} in
demo) want="fuse3:fusermount3 util-linux:unshare" ;;
test) want="fuse3:fusermount3 util-linux:unshare attr:setfattr acl:setfacl libcap2-bin:setcap
	mmdebstrap:mmdebstrap uidmap:newuidmap e2fsprogs:mkfs.ext4 gcc:gcc libc6-dev:/usr/include/stdio.h
	git:git procps:ps xfsprogs:mkfs.xfs thin-provisioning-tools:thin_restore qemu-utils:qemu-img
	libnbd-bin:nbdinfo fio:fio fuse2fs:fuse2fs squashfs-tools:mksquashfs btrfs-progs:mkfs.btrfs busybox-static:busybox python3:python3" ;;
bench) want="fuse3:fusermount3 util-linux:unshare e2fsprogs:mkfs.ext4 mmdebstrap:mmdebstrap fuse-overlayfs:fuse-overlayfs unionfs-fuse:unionfs
	qemu-utils:qemu-nbd fio:fio btrfs-progs:mkfs.btrfs" ;;
*) echo "usage: need.sh demo|test|bench" >&2; exit 2 ;;
esac

command -v go >/dev/null || { echo "Go 1.26 or newer is needed to build layerfs: https://go.dev/dl" >&2; exit 1; }

missing=
for w in $want; do
	tool=${w#*:}
	[ -e "$tool" ] || PATH=$PATH:/usr/sbin:/sbin command -v "$tool" >/dev/null || missing="$missing ${w%%:*}"
done
if [ -n "$missing" ]; then
	if [ "$(id -u)" != 0 ]; then
		echo "missing Debian packages: apt-get install$missing" >&2
		exit 1
	fi
	export DEBIAN_FRONTEND=noninteractive
	apt-get -qq update
	# shellcheck disable=SC2086 # a list of names
	apt-get -qq install -y --no-install-recommends $missing
fi

if [ "$(id -u)" = 0 ]; then
	[ -e /dev/fuse ] || modprobe fuse 2>/dev/null || mknod /dev/fuse c 10 229
	chmod 666 /dev/fuse # as udev does; bare containers and VMs lack udev
fi
[ -w /dev/fuse ] || { echo "/dev/fuse cannot be written by $(id -un)" >&2; exit 1; }
