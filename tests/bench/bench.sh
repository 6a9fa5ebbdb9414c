#!/usr/bin/env bash
# bench.sh [union] [branches] [mounts] [blocks] [pool] [containers]: compares native, kernel overlay, layerfs, fuse-overlayfs and
# unionfs-fuse (those that are there) on a fresh ext4 in a loop device. The
# tree is Debian's minbase (cached in $LAYERFS_CACHE); with LAYERFS_BENCH_SHORT=1
# a smaller one made up on the spot, in one round. Then the same with 1 to 500
# branches, files copied up by blocks (tests/bench/blocks), thin devices against qcow2
# (tests/bench/pool), and what containers cost
# with each driver (tests/bench/containers). Root only: it needs the loop
# device, kernel overlay and dropped caches.
set -eu
cd "$(dirname "$0")/../.."
if [ "$(id -u)" != 0 ]; then
	echo "the benchmark needs root: a loop device, kernel overlay, dropped caches" >&2
	exit 1
fi
short=${LAYERFS_BENCH_SHORT:-}
D=$(mktemp -d /var/tmp/layerfs-bench-XXXXXX)
chmod 755 "$D"
clean() {
	for m in $(awk -v d="$D/" 'index($5, d) == 1 {print $5}' /proc/self/mountinfo | sort -r); do umount -l "$m" || true; done
	rm -rf "$D"
}
trap clean EXIT
trap 'exit 130' INT TERM

CGO_ENABLED=0 go build -o "$D/bench" ./tests/bench
if ! truncate -s "$([ -n "$short" ] && echo 3G || echo 10G)" "$D/img" || ! mkfs.ext4 -q "$D/img"; then exit 1; fi
mkdir "$D/fs"
mount -o loop "$D/img" "$D/fs"
mkdir "$D/fs/lower"
if [ -z "$short" ]; then
	cache=${LAYERFS_CACHE:-/var/cache/layerfs}
	mkdir -p "$cache"
	if [ ! -e "$cache/minbase.tar" ]; then
		mmdebstrap --quiet --format=tar --variant=minbase bookworm "$cache/minbase.tar.new"
		mv "$cache/minbase.tar.new" "$cache/minbase.tar"
	fi
	tar -C "$D/fs/lower" -xf "$cache/minbase.tar"
fi
for what in "${@:-union branches blocks pool containers}"; do
	for w in $what; do
		case $w in
		union) "$D/bench" -dir "$D/fs" -layerfs "$PWD/bin/layerfs" -rounds "${ROUNDS:-5}" ${short:+-short} ${CHART:+-chart "$CHART"} ;;
		mounts) "$D/bench" -mounts "${MOUNTS:-1000}" -dir "$D/fs" -layerfs "$PWD/bin/layerfs" ${short:+-short} ;;
		branches) "$D/bench" -branches -dir "$D/fs" -layerfs "$PWD/bin/layerfs" -rounds "${ROUNDS:-3}" ${short:+-short} ;;
		blocks)
			CGO_ENABLED=0 go build -o "$D/blocks" ./tests/bench/blocks
			mkdir "$D/fs/blocks"
			"$D/blocks" -dir "$D/fs/blocks" -layerfs "$PWD/bin/layerfs" -rounds "${ROUNDS:-3}" ${short:+-short}
			;;
		pool)
			CGO_ENABLED=0 go build -o "$D/poolbench" ./tests/bench/pool
			mkdir "$D/fs/pools"
			"$D/poolbench" -dir "$D/fs/pools" -layerfs "$PWD/bin/layerfs" -rounds "${ROUNDS:-3}" ${short:+-short}
			;;
		containers)
			CGO_ENABLED=0 go build -o "$D/containerbench" ./tests/bench/containers
			truncate -s 4G "$D/btrfs.img"
			mkfs.btrfs -q "$D/btrfs.img"
			mkdir "$D/btrfs"
			mount -o loop "$D/btrfs.img" "$D/btrfs"
			"$D/containerbench" -dir "$D/fs" -btrfs "$D/btrfs" -tree "$D/fs/lower" -layerfs "$PWD/bin/layerfs" ${short:+-containers 20 -readers 3 -size 20}
			;;
		*) echo "bench.sh: nothing called $w" >&2; exit 2 ;;
		esac
	done
done
