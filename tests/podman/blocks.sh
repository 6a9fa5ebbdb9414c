#!/usr/bin/env bash
# blocks.sh: what Podman, Buildah and apt make of files that are copied up by
# blocks, all that have more than one (root). It must be what they make of full
# copies, before they are settled and after.
#
#  1. A build that changes large files in every way, layer upon layer: the same
#     layers. A working container of it: stubs in its upper; settled below a live
#     mount it is the directory that a full copy gives, and so is its commit.
#  2. apt and dpkg in a Debian root, against kernel overlay (TestDebianRoot).
#  3. The acceptance script beside the repository, if it is there (see run.sh):
#     the same layers, rootful and rootless.
#
# Nothing is left behind.
set -eu
cd "$(dirname "$0")/../.."
repo=$PWD
unset CONTAINERS_CONF CONTAINERS_REGISTRIES_CONF STORAGE_DRIVER STORAGE_OPTS
[ "$(id -u)" = 0 ] || { echo "blocks.sh needs root" >&2; exit 1; }
missing=
for w in podman buildah crun skopeo umoci busybox-static:busybox uidmap:newuidmap fuse3:fusermount3 attr:getfattr mmdebstrap python3; do
	command -v "${w##*:}" >/dev/null || missing="$missing ${w%%:*}"
done
if [ -n "$missing" ]; then
	apt-get -qq update
	# shellcheck disable=SC2086 # a list of names
	apt-get -qq install -y --no-install-recommends $missing
fi

D=/var/tmp/layerfs-blocks-$$ # in lower case, for containers-storage
mkdir -m 755 "$D"
finish() {
	for s in full blocks; do
		[ -d "$D/$s" ] || continue
		store $s
		buildah umount -a >/dev/null 2>&1 || true
		buildah rm -a >/dev/null 2>&1 || true
		podman rmi -f -a >/dev/null 2>&1 || true
		umount "$D/$s/graph/overlay" 2>/dev/null || true
	done
	rm -rf "$D"
}
trap finish EXIT

install -m 755 bin/layerfs "$D/layerfs"
# The two mount programs. They are what Podman calls, so their options come first.
printf '#!/bin/sh\nexec %s "$@"\n' "$D/layerfs" >"$D/in-full"
printf '#!/bin/sh\nexec %s -o copyup=block,copyup_threshold=64K "$@"\n' "$D/layerfs" >"$D/in-blocks"
chmod 755 "$D/in-full" "$D/in-blocks"

# store NAME makes Podman and Buildah use a store of their own in $D/NAME.
store() {
	mkdir -p "$D/$1"
	cat >"$D/$1/storage.conf" <<C
[storage]
driver = "overlay"
graphroot = "$D/$1/graph"
runroot = "$D/$1/run"
[storage.options.overlay]
mount_program = "$D/in-$1"
C
	export CONTAINERS_STORAGE_CONF=$D/$1/storage.conf
}

same() { # what, file, file
	cmp -s "$2" "$3" && echo "ok: $1" || { diff "$2" "$3" | head -40; echo "FAILED: $1" >&2; exit 1; }
}

# The base: large files, one with holes, one with two names, one in a directory
# that is renamed, one with attributes.
mkdir -p "$D/root/bin" "$D/root/data/dir" "$D/root/tmp"
cp "$(command -v busybox)" "$D/root/bin/busybox"
for a in sh cat dd chmod chown truncate mv rm ln cp touch head seq; do ln -s busybox "$D/root/bin/$a"; done
for f in big cut meta linked dir/moved gone; do seq 1 200000 | sed "s/^/$(basename $f) /" >"$D/root/data/$f"; done
ln "$D/root/data/linked" "$D/root/data/other"
truncate -s 4M "$D/root/data/holes"
seq 1 50000 | dd of="$D/root/data/holes" bs=64K seek=20 conv=notrunc status=none
setfattr -n user.demo -v value "$D/root/data/meta"
tar --sort=name --mtime=@1600000000 --numeric-owner --xattrs -C "$D/root" -cf "$D/base.tar" .
cat >"$D/Containerfile" <<'C'
FROM localhost/base
RUN echo changed | dd of=/data/big bs=1 seek=300000 conv=notrunc; echo end >>/data/holes; chmod 0600 /data/meta; rm /data/gone
RUN truncate -s 100000 /data/cut; truncate -s 900000 /data/cut; mv /data/dir /data/away; echo x | dd of=/data/away/moved bs=1 seek=70000 conv=notrunc
RUN echo again | dd of=/data/big bs=1 seek=900000 conv=notrunc; echo more >>/data/other; chown 33:33 /data/meta; cp /data/cut /data/copy
C

# work MODE: the build, and a working container of which the upper is compared.
work() {
	store "$1"
	podman import -q "$D/base.tar" localhost/base >/dev/null
	buildah bud -q --layers --isolation chroot --timestamp 0 -t localhost/img -f "$D/Containerfile" "$D" >/dev/null 2>"$D/bud.log" || { cat "$D/bud.log"; exit 1; }
	podman image inspect --format '{{range .RootFS.Layers}}{{println .}}{{end}}' localhost/img >"$D/$1.layers"
	c=$(buildah from localhost/img)
	buildah run --isolation chroot "$c" sh -c 'echo live | dd of=/data/big bs=1 seek=5 conv=notrunc; chmod 0640 /data/linked; mv /data/away /data/dir2
		truncate -s 70000 /data/copy; echo y >>/data/holes; cp /data/meta /data/new; rm /data/cut; ln /data/new /data/new2' 2>/dev/null
	m=$(buildah mount "$c")
	upper=$(dirname "$m")/diff
	[ "$1" = full ] || grep -q "only a stub" "$upper/data/big" || { echo "FAILED: big has not been copied up by blocks" >&2; exit 1; }
	(cd "$m" && tree) >"$D/$1.tree"
	commit "$1"
	"$D/layerfs" settle "$m"
	(cd "$m" && tree) >"$D/$1.settled"
	buildah umount "$c" >/dev/null
	(cd "$upper" && tree) >"$D/$1.upper"
	commit "$1"
	buildah rm "$c" >/dev/null
}

# commit MODE: the layers of the working container's image.
commit() {
	buildah commit -q --timestamp 0 "$c" localhost/more >/dev/null
	podman image inspect --format '{{range .RootFS.Layers}}{{println .}}{{end}}' localhost/more >>"$D/$1.more"
}

# tree lists the directory at hand: names, kinds, modes, owners, sizes, targets,
# attributes but layerfs's and overlay's own, links, content. Of a whiteout there is no size.
tree() {
	find . -path './.wh..wh.*' -prune -o -type d -printf '%p %y %m %U:%G\n' -o -printf '%p %y %m %U:%G %n %l\n' | sort
	find . -path './.wh..wh.*' -prune -o -type f -printf '%p %s\n' | sort
	find . -path './.wh..wh.*' -prune -o -type f -print0 | sort -z | xargs -0 sha256sum
	getfattr -R -h -d -m '^user\.demo|^security' . 2>/dev/null
}

for mode in full blocks; do
	echo "== a build, $mode"
	work $mode
done
same "layers of the build" "$D/full.layers" "$D/blocks.layers"
same "the working container's tree, with stubs" "$D/full.tree" "$D/blocks.tree"
same "the working container's tree, settled" "$D/full.tree" "$D/blocks.settled"
same "the working container's upper, settled" "$D/full.upper" "$D/blocks.upper"
same "layers of its commits, before and after" "$D/full.more" "$D/blocks.more"

echo "== apt and dpkg"
LAYERFS_BIN=$D/layerfs LAYERFS_TEST_STRICT=1 LAYERFS_TEST_MOUNT=copyup=block,copyup_threshold=64K \
	go test -count=1 -timeout 20m -run '^TestDebianRoot$' ./tests

accept=$repo/../shared/tools/podman/accept.sh
if [ ! -x "$accept" ]; then
	echo "skipped: $accept is not there"
	exit 0
fi
failed=
for mode in rootful rootless; do
	mkdir "$D/f" "$D/b"
	echo "== $mode: what full copies give"
	if ! (cd "$D/f" && "$accept" "$mode" "$D/in-full") >"$D/golden.log" 2>&1; then
		tail -40 "$D/golden.log"
		failed="$failed $mode"
	else
		echo "== $mode: blocks"
		(cd "$D/b" && "$accept" "$mode" "$D/in-blocks" "$D/f/last-$mode.layers") || failed="$failed $mode"
	fi
	rm -rf "$D/f" "$D/b"
done
[ -z "$failed" ] || { echo "FAILED:$failed"; exit 1; }
