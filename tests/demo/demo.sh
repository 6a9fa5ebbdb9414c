#!/usr/bin/env bash
# demo.sh: the main job of layerfs on real input. A directory that exists (the
# machine's own root, or $LOWER) becomes the read-only lower branch; we enter
# the merged root, change and delete things there, and look at what landed in
# the upper and that the lower is as it was. As an ordinary user the same
# happens in a user namespace, in which he is root.
set -eu -o pipefail

LOWER=$(cd "${LOWER:-/}" && pwd)
BIN=$(cd "$(dirname "$0")/../.." && pwd)/bin/layerfs

if [ "${1:-}" != inside ]; then
	D=$(mktemp -d /var/tmp/layerfs-demo-XXXXXX)
	# rm, and no unmount, is the last word: inside has unmounted, or its mount
	# namespace is gone and the mount with it.
	trap 'rm -rf --one-file-system "$D"' EXIT
	mkdir "$D/upper" "$D/work" "$D/merged"
	export D LOWER
	if [ "$(id -u)" = 0 ]; then
		unshare -m --propagation private "$0" inside
	else
		unshare -Urm "$0" inside
	fi
	exit
fi

n=0
say() { n=$((n + 1)); printf '\n%d. %s\n' "$n" "$*"; }
show() { printf '   $ %s\n' "$*"; "$@" | awk 'NR <= 10 {print "   " $0} END {if (NR > 10) print "   … and " NR - 10 " more"}'; }
first() { for p; do [ -e "$LOWER/$p" ] && { echo "$p"; break; }; done; return 0; }
# What is changed, deleted and renamed: known places of a Debian root, else
# the first file and directories there are.
dirs=$(cd "$LOWER" && find . -mindepth 1 -maxdepth 1 -type d ! -name proc ! -name sys ! -name dev -printf '%P\n' | sort)
dead=$(first usr/share/doc) moved=$(first etc/apt) file=$(first etc/passwd)
dead=${dead:-$(echo "$dirs" | sed -n 1p)} moved=${moved:-$(echo "$dirs" | sed -n 2p)}
file=${file:-$(cd "$LOWER" && find . -xdev -type f -size -100k -readable ! -path "./$dead/*" ! -path "./$moved/*" -printf '%P\n' 2>/dev/null | sort | head -1)}
for p in "$file" "$dead" "$moved"; do
	[ -n "$p" ] || { echo "$LOWER has too little in it for a demonstration: a file and two directories are wanted" >&2; exit 1; }
done
sums() {
	(cd "$LOWER" && find "$file" "$dead" "$moved" -xdev -type f -readable -exec sha256sum {} + 2>/dev/null | sort | sha256sum | cut -c1-16)
}

say "The lower branch is $LOWER, read-only. The upper is empty."
before=$(sums)
echo "   $(find "$LOWER/$file" "$LOWER/$dead" "$LOWER/$moved" -xdev 2>/dev/null | wc -l) files will be touched; their checksum is $before"

say "Mount."
squash=
[ "$(stat -c %u /proc/self)" = 0 ] && [ "$(awk '{print $3; exit}' /proc/self/uid_map)" != 1 ] || squash=,squash_to_root
opts="lowerdir=$LOWER,upperdir=$D/upper,workdir=$D/work$squash"
echo "   \$ layerfs mount -o $opts $D/merged"
"$BIN" mount -o "$opts" "$D/merged"
trap 'cd /; "$BIN" umount "$D/merged" 2>/dev/null || umount -l "$D/merged"' EXIT

change='set -e
id | sed "s/^/   /"
echo "a line from inside" >>"$1"; echo "   changed   $1"
rm -rf "$2";                      echo "   deleted   $2 ($3 files)"
mv "$4" "$4.renamed";             echo "   renamed   $4 to $4.renamed"
mkdir -p opt/demo
echo "made in the merged root" >opt/demo/hello; chmod 4755 opt/demo/hello
                                  echo "   created   opt/demo/hello"
test ! -e "$2"; test -d "$4.renamed"; tail -1 "$1" | grep -q "a line from inside"
'
count=$(find "$LOWER/$dead" -xdev 2>/dev/null | wc -l)
if [ -x "$LOWER/bin/sh" ]; then
	say "Enter the merged root (chroot) and work there."
	chroot "$D/merged" /bin/sh -c "cd /; $change" sh "$file" "$dead" "$count" "$moved"
else
	say "Work in the merged tree (it has no /bin/sh to chroot to)."
	(cd "$D/merged" && sh -c "$change" sh "$file" "$dead" "$count" "$moved")
fi

say "What has changed, as layerfs tells it:"
show "$BIN" changes "$D/merged"

say "Where a name comes from:"
show "$BIN" trace "$D/merged" "$moved.renamed"

say "What landed in the upper: the changes, and nothing else."
(cd "$D/upper" && find . -mindepth 1 -printf '   %M %s %p\n' | sort -k3 | sed -n 1,20p)

say "Unmount. The lower is untouched:"
cd /
"$BIN" umount "$D/merged"
trap - EXIT
after=$(sums)
echo "   checksum before $before, after $after"
[ "$before" = "$after" ]
if [ -n "$(ls -A "$D/work/work" 2>/dev/null)" ]; then echo "   the work directory is not empty" >&2; exit 1; fi
printf '\nDone: %s was changed from inside and is still the same.\n' "$LOWER"
