#!/bin/sh
# devicemapper-guest.sh: goes into the Debian on the first disk and runs what is there.
set -eu
cat /modules/xfs /modules/fuse /modules/overlay | while read -r m; do insmod "/modules/$m" 2>/dev/null || true; done
mkdir -p /mnt/root
mount -t ext4 /dev/vda /mnt/root
cp argument /mnt/root/layerfs/pattern
cp argument /mnt/root/layerfs/cut
for d in proc sys dev; do mount --bind "/$d" "/mnt/root/$d"; done
ln -s /proc/self/fd /dev/fd
mount -t tmpfs run /mnt/root/run
exec chroot /mnt/root /bin/bash "/layerfs/$(cat script)"
