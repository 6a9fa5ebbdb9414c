#!/usr/bin/env bash
# run.sh: the proofs in interop.sh and backends.sh, with the program $LAYERFS.
# Installs, as root, the Debian packages that they lack; what a virtual machine
# needs beside them is kept in $VM_CACHE.
set -eu
export VM_CACHE=${VM_CACHE:-/var/tmp/layerfs-vm}

missing=
for w in qemu-system-x86:qemu-system-x86_64 busybox-static:busybox cpio:cpio kmod:depmod dmsetup:dmsetup \
	thin-provisioning-tools:thin_restore e2fsprogs:mkfs.ext4 fuse3:fusermount3; do
	PATH=$PATH:/usr/sbin:/sbin command -v "${w#*:}" >/dev/null || missing="$missing ${w%%:*}"
done
if [ "$(id -u)" = 0 ]; then
	export DEBIAN_FRONTEND=noninteractive
	# The name of the kernel's package moves with the archive.
	if [ -n "$missing" ] || [ ! -e "$VM_CACHE/kernel" ]; then apt-get -qq update; fi
	# shellcheck disable=SC2086 # a list of names
	[ -z "$missing" ] || apt-get -qq install -y --no-install-recommends $missing
	[ -e /dev/fuse ] || modprobe fuse 2>/dev/null || mknod -m 666 /dev/fuse c 10 229
elif [ -n "$missing" ]; then
	echo "missing Debian packages: apt-get install$missing" >&2
	exit 1
fi
"$(dirname "$0")/backends.sh"
"$(dirname "$0")/interop.sh"
