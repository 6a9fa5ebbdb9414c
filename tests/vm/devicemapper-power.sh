# devicemapper-power.sh: in the guest's Debian: looks what the last power cut has left, and
# works until the next. /layerfs/cut has the seconds to work, 0 for no more cuts. What was
# acknowledged is in /acked, synced after each line.
# shellcheck shell=bash
set -eu
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C DM_DISABLE_UDEV=1
cd /layerfs
dm() {
	/layerfs/layerfs --root /w/s --driver devicemapper --storage-opt dm.basesize=64M --storage-opt dm.loopdatasize=1G \
		--storage-opt dm.loopmetadatasize=16M --storage-opt dm.blkdiscard=false "$@" 2>/layerfs/err || { cat /layerfs/err && return 1; }
}
acked() { echo "$*" >>/acked && sync /acked; }

if [ ! -e /acked ]; then
	mkdir -p /w/image
	echo hello >/w/image/f
	tar -C /w/image -cf /w/image.tar .
	dm layer import image /w/image.tar >/dev/null
	acked begin
else
	dm info >/dev/null
	# The last command may have happened without an answer.
	last=$(tail -1 /acked)
	there=$(dm container ls | awk 'NR > 1 {print $1}' | sort)
	want=$(awk '$1 == "made" {c[$2] = 1} $1 == "removed" {delete c[$2]} END {for (n in c) print n}' /acked | sort)
	differ=$(comm -3 <(echo "$there") <(echo "$want") | xargs)
	[ "$(echo "$differ" | wc -w)" -le 1 ] || { echo "after '$last': there are $there, acknowledged are $want" && exit 1; }
	for c in $there; do
		m=$(dm container mount "$c")
		[ "$(cat "$m/f")" = hello ] || { echo "$c is damaged" && exit 1; }
		dm container umount "$c"
	done
	[ -z "$differ" ] || dm container rm "$differ" 2>/dev/null || true
	sed -i "/ $differ\$/d" /acked
	dm device deactivate
	thin_check -q /w/s/devicemapper/devicemapper/metadata || { echo "thin_check complains" && exit 1; }
	echo "boot: $(echo "$there" | wc -w) containers, all whole"
fi
seconds=$(cat cut)
[ "$seconds" != 0 ] || exit 0
(sleep "$seconds" && echo b >/proc/sysrq-trigger) &
for i in $(seq 1000); do
	c=c$(date +%s)-$i
	dm container create --from image "$c"
	acked made "$c"
	[ $((i % 3)) != 0 ] || { dm container commit "$c" "l$c" >/dev/null && dm layer rm "l$c"; }
	[ $((i % 2)) != 0 ] || { dm container rm "$c" && acked removed "$c"; }
done
