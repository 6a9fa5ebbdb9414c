#!/usr/bin/env bash
# oci-tools.sh: layerfs's layers and those of the tools around (root).
#
#  1. The same steps in a Debian root, by Buildah on kernel overlay and in a
#     layerfs mount. Both layers are unpacked by umoci over the same base: the
#     trees must be the same in types, modes, owners, extended attributes,
#     contents, links and times.
#  2. umoci and skopeo take the image with layerfs's layer; the layer that
#     `layerfs apply` makes of Buildah's is written again as what it is.
#  3. `layerfs diff` of one changed file in 10,000 against `podman diff` over
#     fuse-overlayfs: at least 20 times faster.
#
# Nothing is left behind. Needs buildah, podman, fuse-overlayfs, skopeo, umoci, mmdebstrap.
set -eu
cd "$(dirname "$0")/../.."
unset CONTAINERS_CONF CONTAINERS_REGISTRIES_CONF STORAGE_DRIVER STORAGE_OPTS
LAYERFS=${LAYERFS_BIN:-$PWD/bin/layerfs}
[ "$(id -u)" = 0 ] || { echo "oci-tools.sh needs root" >&2; exit 1; }
missing=
for w in buildah podman skopeo umoci fuse-overlayfs mmdebstrap python3 attr:getfattr libcap2-bin:setcap; do
	command -v "${w##*:}" >/dev/null || missing="$missing ${w%%:*}"
done
if [ -n "$missing" ]; then
	apt-get -qq update
	# shellcheck disable=SC2086 # a list of names
	apt-get -qq install -y --no-install-recommends $missing
fi

D=/var/tmp/layerfs-oci-$$ # in lower case, for containers-storage
mkdir "$D"
finish() {
	for m in "$D/m" "$D/m2"; do mountpoint -q "$m" && umount "$m"; done
	for s in native fuse; do
		store $s
		podman umount -a >/dev/null 2>&1 || true
		podman rm -f -a >/dev/null 2>&1 || true
		podman rmi -f -a >/dev/null 2>&1 || true
	done
	umount "$D"/*/graph/overlay 2>/dev/null || true
	rm -rf "$D"
}
trap finish EXIT

# store NAME makes Podman and Buildah use a store of their own in $D/NAME.
store() {
	mkdir -p "$D/$1"
	cat >"$D/$1/storage.conf" <<C
[storage]
driver = "overlay"
graphroot = "$D/$1/graph"
runroot = "$D/$1/run"
[storage.options.overlay]
$([ "$1" = native ] || echo 'mount_program = "/usr/bin/fuse-overlayfs"')
C
	export CONTAINERS_STORAGE_CONF=$D/$1/storage.conf
}

same() { # what, file, file
	cmp -s "$2" "$3" && echo "ok: $1" || { diff "$2" "$3" | head -40; echo "FAILED: $1" >&2; exit 1; }
}

# tree DIR lists everything that is known of a tree.
tree() {
	(cd "$1" && python3 - <<'P'
import hashlib, os, stat
links = {}
paths = []
for top, dirs, files in os.walk(".", topdown=True):
    dirs.sort()
    paths += [top] + [os.path.join(top, f) for f in files] + [os.path.join(top, d) for d in dirs if os.path.islink(os.path.join(top, d))]
paths.sort()
for p in paths:
    s = os.lstat(p)
    if not stat.S_ISDIR(s.st_mode):
        links.setdefault(s.st_ino, []).append(p)
for p in paths:
    s = os.lstat(p)
    more = []
    if stat.S_ISREG(s.st_mode):
        more = [s.st_size, hashlib.sha256(open(p, "rb").read()).hexdigest()]
    elif stat.S_ISLNK(s.st_mode):
        more = [os.readlink(p)]
    elif stat.S_ISBLK(s.st_mode) or stat.S_ISCHR(s.st_mode):
        more = [s.st_rdev]
    if not stat.S_ISDIR(s.st_mode) and len(links[s.st_ino]) > 1:
        more.append("=" + links[s.st_ino][0])
    x = sorted((a, os.getxattr(p, a, follow_symlinks=False).hex()) for a in os.listxattr(p, follow_symlinks=False) if ".overlay." not in a and ".layerfs." not in a)
    print(p, oct(s.st_mode), s.st_uid, s.st_gid, s.st_mtime_ns, *more, *x)
P
	)
}

# The steps, in the root that is made. At the end everything that changed gets
# one time, so that two runs can be compared: in whole seconds, since Buildah
# drops the rest.
cat >"$D/steps.sh" <<'S'
set -eu
touch /marker; sleep 0.05
groupadd -g 4242 staff2
useradd -m -u 70000 -g 4242 big
apt-get clean
dpkg --purge --force-all mount bsdutils >/dev/null 2>&1
rm -rf /usr/share/doc/* /var/lib/apt/lists
rm -rf /usr/share/locale && mkdir /usr/share/locale && echo new >/usr/share/locale/only
mv /usr/share/zoneinfo /usr/share/zones
mv /usr/share/perl5 /opt/perl5 && echo more >/opt/perl5/extra
rm -rf /etc/alternatives && echo file >/etc/alternatives
rm /etc/issue && mkdir /etc/issue && touch /etc/issue/in
ln /bin/ls /bin/ls2 && chmod 4711 /bin/ls2
echo more >>/usr/bin/perl5.36.0
chown 33:33 /etc/hostname 2>/dev/null || echo h >/etc/hostname
chmod 1777 /srv && chmod 0700 /media
mkfifo /run/pipe && mknod /dev/loopy b 7 300
truncate -s 20000000 /var/sparse && printf x | dd of=/var/sparse bs=1 seek=9000000 conv=notrunc 2>/dev/null
mkdir -p "/d/$(printf 'n%.0s' $(seq 200))/$(printf 'o%.0s' $(seq 200))" && echo deep >"/d/$(printf 'n%.0s' $(seq 200))/$(printf 'o%.0s' $(seq 200))/f"
echo u >"/d/ünïcode:colon,comma"; echo n >"/d/new
line"
touch /etc/passwd-; cat /etc/group >/etc/group.tmp && mv /etc/group.tmp /etc/group
chmod 0711 /usr/sbin; chmod 0755 /usr/sbin
rm -f /var/log/*.log /var/cache/ldconfig/aux-cache /var/log/apt/*
S
cat >"$D/after.sh" <<'S'
setfattr -n user.demo -v value "$1/etc/passwd"
setcap cap_net_raw+ep "$1/bin/ls"
find "$1" -xdev -newer "$1/marker" -exec touch -h -d '2020-02-02 02:02:02' {} +
rm "$1/marker"
touch -h -d '2020-02-02 02:02:02' "$1"
S
steps() {
	chroot "$1" sh <"$D/steps.sh"
	sh "$D/after.sh" "$1"
}

cache=${LAYERFS_CACHE:-/var/cache/layerfs}/minbase.tar
if [ ! -e "$cache" ]; then
	mkdir -p "$(dirname "$cache")"
	mmdebstrap --variant=minbase bookworm "$cache.new" >/dev/null 2>&1
	mv "$cache.new" "$cache"
fi
mkdir "$D/base" "$D/u" "$D/w" "$D/m"
tar -C "$D/base" -xpf "$cache" --xattrs --xattrs-include='*'

echo "== Buildah on kernel overlay"
store native
tar -C "$D/base" --xattrs --xattrs-include='*' --numeric-owner --format=pax -cf "$D/base.tar" .
c=$(buildah from scratch)
buildah add -q "$c" "$D/base.tar" / >/dev/null
buildah commit -q "$c" localhost/base:1 >/dev/null
buildah rm "$c" >/dev/null
c=$(buildah from localhost/base:1)
m=$(buildah mount "$c")
grep -q " $m overlay " /proc/mounts || { echo "Buildah does not use kernel overlay here" >&2; exit 1; }
steps "$m"
buildah umount "$c" >/dev/null
buildah commit -q --disable-compression "$c" "oci:$D/b:v1" >/dev/null
buildah rm "$c" >/dev/null
blob() { # the last layer of an OCI layout
	python3 -c '
import json, sys
blob = lambda d: sys.argv[1] + "/blobs/" + d.replace(":", "/")
i = json.load(open(sys.argv[1] + "/index.json"))
print(blob(json.load(open(blob(i["manifests"][0]["digest"])))["layers"][-1]["digest"]))' "$1"
}
cp "$(blob "$D/b")" "$D/buildah.tar"

echo "== layerfs"
"$LAYERFS" mount -o "backend=fuse,lowerdir=$D/base,upperdir=$D/u,workdir=$D/w" "$D/m"
steps "$D/m"
"$LAYERFS" diff "$D/m" -o "$D/layerfs.tar"
tree "$D/m" >"$D/merged.list"
umount "$D/m"
"$LAYERFS" diff --upper "$D/u" --lower "$D/base" >"$D/again.tar"
same "diff of the live mount and of its upper" "$D/layerfs.tar" "$D/again.tar"
echo "   entries: Buildah $(tar tf "$D/buildah.tar" | wc -l), layerfs $(tar tf "$D/layerfs.tar" | wc -l), whiteouts $(tar tf "$D/layerfs.tar" | grep -c '\.wh\.')"

echo "== umoci, skopeo"
# image TAR makes the OCI layout $D/i with the base and the layer.
image() {
	rm -rf "$D/i"
	umoci init --layout "$D/i" && umoci new --image "$D/i:v1"
	umoci raw add-layer --image "$D/i:v1" "$D/base.tar"
	umoci raw add-layer --image "$D/i:v1" "$1"
}
for who in buildah layerfs; do
	image "$D/$who.tar"
	umoci raw unpack --image "$D/i:v1" "$D/root-$who" >/dev/null 2>&1
	tree "$D/root-$who" >"$D/$who.list"
	[ $who = layerfs ] || rm -rf "$D/root-$who"
done
same "umoci's tree of layerfs's layer is the merged tree ($(wc -l <"$D/merged.list") names)" "$D/merged.list" "$D/layerfs.list"
# Buildah's layers do not tell the root itself, and kernel overlay as Buildah
# mounts it takes perl apart, which has two names, when one is written to.
for who in buildah layerfs; do sed -i '/^\. /d; /^\.\/usr\/bin\/perl/d' "$D/$who.list"; done
same "umoci's trees of Buildah's layer and of layerfs's" "$D/buildah.list" "$D/layerfs.list"
skopeo inspect "oci:$D/i:v1" >/dev/null
skopeo copy -q --insecure-policy "oci:$D/i:v1" "oci-archive:$D/i.tar:x"
echo "ok: skopeo copies the image"
buildah pull -q "oci:$D/i:v1" >/dev/null
echo "ok: containers-storage takes the image"
podman rmi -f -a >/dev/null

echo "== apply"
for dialect in overlay aufs xattr; do
	rm -rf "$D/u2"
	"$LAYERFS" apply --to "$D/u2" --whiteout $dialect "$D/layerfs.tar"
	"$LAYERFS" diff --upper "$D/u2" --lower "$D/base" >"$D/again.tar"
	same "layerfs's layer, applied as $dialect and written again, is the same" "$D/layerfs.tar" "$D/again.tar"
done
rm -rf "$D/u2" && mkdir "$D/m2"
"$LAYERFS" apply --to "$D/u2" --whiteout overlay "$D/buildah.tar"
mount -t overlay -o "ro,lowerdir=$D/u2:$D/base" overlay "$D/m2"
tree "$D/m2" | sed '/^\. /d; /^\.\/usr\/bin\/perl/d' >"$D/kernel.list"
umount "$D/m2"
same "Buildah's layer, applied by layerfs and mounted by the kernel, is umoci's tree of it" "$D/buildah.list" "$D/kernel.list"
rm -rf "$D/u2"
"$LAYERFS" apply --to "$D/u2" --whiteout overlay "$D/layerfs.tar"
mount -t overlay -o "ro,lowerdir=$D/u2:$D/base" overlay "$D/m2"
tree "$D/m2" >"$D/kernel.list"
umount "$D/m2"
sed -i '/^\. /d' "$D/merged.list" "$D/kernel.list"
same "layerfs's layer, applied and mounted by the kernel, is the merged tree" "$D/merged.list" "$D/kernel.list"

echo "== one changed file in 10,000: Podman over fuse-overlayfs, layerfs"
rm -rf "$D/base" "$D/u" "$D/w" "$D/u2" "$D/root-layerfs"
mkdir "$D/ten" "$D/u" "$D/w"
for d in $(seq 100); do mkdir "$D/ten/d$d"; for f in $(seq 100); do echo "$d.$f" >"$D/ten/d$d/f$f"; done; done
store fuse
tar -C "$D/ten" -cf "$D/ten.tar" .
podman import -q "$D/ten.tar" localhost/ten:1 >/dev/null
podman create -q --name ten localhost/ten:1 /bin/true >/dev/null
echo changed >"$(podman mount ten)/d50/f50"
"$LAYERFS" mount -o "backend=fuse,lowerdir=$D/ten,upperdir=$D/u,workdir=$D/w" "$D/m"
echo changed >"$D/m/d50/f50"
millis() { # the median of five runs
	for _ in 1 2 3 4 5; do
		local s; s=$(date +%s%N)
		"$@" >/dev/null
		echo $((($(date +%s%N) - s) / 10000))
	done | sort -n | sed -n 3p
}
p=$(millis podman diff ten) l=$(millis "$LAYERFS" diff "$D/m" -o "$D/ten.layer")
umount "$D/m"
echo "   podman diff ${p%??}.${p: -2} ms, layerfs diff ${l%??}.${l: -2} ms: $((p / l)) times faster"
[ $((p / l)) -ge 20 ] || { echo "FAILED: 20 times are wanted" >&2; exit 1; }
echo "ok: all"
