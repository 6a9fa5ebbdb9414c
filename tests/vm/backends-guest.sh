#!/bin/sh
# backends-guest.sh: the half of backends.sh that runs in the guest. Modules
# are loaded one after the other.
# shellcheck shell=dash disable=SC2317 # busybox is like dash; step runs the functions
set -eu
T=/tmp
# shellcheck source-path=SCRIPTDIR
. ./steps.sh
L=$PWD/layerfs D=/mnt/d

load() {
	local m
	while read -r m; do
		[ -d "/sys/module/$(echo "${m%.ko}" | tr - _)" ] || insmod "/modules/$m"
	done <"/modules/$1"
}

# answer NAME WANTED [REASON]: what the last probe has said.
answer() {
	local line
	line=$(grep "^$1 " probed)
	case $line in
	"$1 "*" $2"*"${3:-}"*) ;;
	*) same "probe" "$1 $2 ${3:-}" "$line" ;;
	esac
}

# mounts BACKEND WHY OPTIONS: layerfs mount takes that backend and says why.
mounts() {
	"$L" mount -o "lowerdir=$D/l:$D/l2,upperdir=$D/u,workdir=$D/w$3" "$D/m"
	"$L" status "$D/m" >status
	same "the backend" "$1" "$(awk '$1 == "backend:" {print $2}' status)"
	grep "^why: .*$2" status || same "why" "$2" "$(cat status)"
	echo changed >"$D/m/f"
	rm "$D/m/gone"
	same "what has changed" "C /f D /gone" "$("$L" changes "$D/m" | xargs)"
	"$L" umount "$D/m"
	fresh
}

# refused CODE SAYS OPTIONS
refused() {
	local rc=0
	"$L" mount -o "lowerdir=$D/l:$D/l2,upperdir=$D/u,workdir=$D/w$3" "$D/m" >said 2>&1 || rc=$?
	same "the exit code" "$1" "$rc"
	grep "$2" said || same "the message" "$2" "$(cat said)"
}

fresh() {
	rm -rf "$D"
	mkdir -p "$D/l" "$D/l2" "$D/u" "$D/w" "$D/m"
	echo lower >"$D/l/f"
	echo lower >"$D/l2/gone"
}

probe() { "$L" probe "$D" >probed; }

neither() {
	probe
	answer overlay no "modprobe overlay"
	answer overlay-rootless no "modprobe overlay"
	answer fuse no /dev/fuse
	refused 7 /dev/fuse ""
	refused 7 "modprobe overlay" ,backend=overlay
}

fuse_alone() {
	load fuse
	probe
	answer fuse yes
	answer overlay no "modprobe overlay"
	mounts fuse "modprobe overlay" ""
	refused 7 "modprobe overlay" ,backend=overlay
}

both() {
	load overlay
	probe
	answer overlay yes
	answer overlay-rootless yes
	mounts overlay "no option" ""
	mounts fuse "asked for" ,backend=fuse
}

many() {
	local lowers long
	long=$(printf 'long%.0s' 1 2 3 4 5 6 7 8 9 10)
	lowers=$(seq 0 499 | sed "s#^#:$D/$long/#" | tr -d '\n')
	echo "${lowers#:}" | tr : '\n' | xargs mkdir -p
	echo last >"$D/$long/499/last"
	"$L" mount -o "backend=overlay,lowerdir=${lowers#:},upperdir=$D/u,workdir=$D/w" "$D/m"
	same "a file of the lowest" last "$(cat "$D/m/last")"
	same "the branches" "501 $D/$long/499=ro" "$("$L" branches "$D/m" | awk 'END {print NR, $2}')"
	rm "$D/m/last"
	same "what has changed" "D /last" "$("$L" changes "$D/m")"
	"$L" umount "$D/m"
	fresh
}

# rootless: in a user namespace, where layerfs is to do the same.
rootless() {
	unshare -U -r -m "$L" mount -o "backend=overlay,lowerdir=$D/l:$D/l2,upperdir=$D/u,workdir=$D/w" "$D/m"
	same "nothing here" "" "$(grep "$D/m" /proc/mounts || true)"
	fresh
	# shellcheck disable=SC2016 # the inner shell's
	same "what root of a user namespace sees" "overlay changed" "$(unshare -U -r -m sh -ec '
		"$0" mount -o "lowerdir=$1/l:$1/l2,upperdir=$1/u,workdir=$1/w" "$1/m"
		echo changed >"$1/m/f"
		echo $("$0" status "$1/m" | awk "\$1 == \"backend:\" {print \$2}") $(cat "$1/m/f")' "$L" "$D")"
	fresh
}

devices() {
	answer dm-thin yes
	answer loop yes
	answer btrfs no ext4
	answer reflink no ext4
}

/bin/mke2fs -q -t ext4 /dev/vda
mount -t ext4 /dev/vda /mnt
fresh
step "neither overlay nor FUSE" neither
step "FUSE alone" fuse_alone
step "both: the kernel's overlay" both
step "500 lowers through one page of options" many
step "in a user namespace" rootless
step "device-mapper, loop, btrfs, reflink" devices
exit $failed
