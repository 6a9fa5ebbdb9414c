package union

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// asNobody runs a shell script as a user without privileges.
func asNobody(t *testing.T, script string) string {
	t.Helper()
	out, err := runFor(30*time.Second, "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-ec", script)
	require.NoError(t, err, out)
	return out
}

// publicBinary is a copy of the program that every user may run.
func (b *box) publicBinary() string {
	b.t.Helper()
	to := filepath.Join(b.dir, "layerfs")
	out, err := exec.Command("install", "-m", "755", binary, to).CombinedOutput()
	require.NoError(b.t, err, string(out))
	return to
}

// "It is an overlay, it should just work without root" (fuse-overlayfs #374,
// #377, #428): what root owns in a lower can be deleted, renamed and changed
// by a user when the upper is his and the merged directory lets him.
func TestUserChangesWhatRootOwns(t *testing.T) {
	needRoot(t)
	b := newBox(t)
	require.NoError(t, unix.Chmod("/dev/fuse", 0666))
	put(t, b.lower, "d/gone=1", "d/moved=2", "d/changed=3", "d/tree/x=t", "d/moded=5", "closed/f=6")
	for name, mode := range map[string]uint32{"d": 0777, "d/changed": 0666, "d/tree": 0777, "d/gone": 0600, "d/moved": 0444} {
		require.NoError(t, unix.Chmod(b.lower+"/"+name, mode))
	}
	require.NoError(t, unix.Chmod(b.lower+"/d/changed", 0666|unix.S_ISUID))
	for _, dir := range []string{b.upper, b.work, b.mnt} {
		require.NoError(t, os.Chown(dir, 65534, 65534))
	}
	prog := b.publicBinary()
	out := asNobody(t, `
		m=`+b.mnt+`
		`+prog+` -o `+b.options()+` $m
		trap "fusermount3 -u $m" EXIT
		rm -f $m/d/gone
		mv $m/d/moved $m/d/moved2
		echo more >> $m/d/changed
		mv $m/d/tree $m/d/tree2
		echo new > $m/d/tree2/y
		if rm -f $m/closed/f 2>/dev/null; then echo "closed did not refuse"; fi
		if chmod 777 $m/closed 2>/dev/null; then echo "closed could be opened"; fi
		cd $m && find d closed | sort | tr '\n' ' '
		cat d/moved2 d/changed d/tree2/x
		stat -c %a d/changed
		cd /
	`)
	require.Equal(t, "closed closed/f d d/changed d/moded d/moved2 d/tree2 d/tree2/x d/tree2/y 23more\nt666\n", out)
}

// The whole root of the machine as a lower, with the upper, the work
// directory and the mountpoint in it: they are not to be seen, nor what is
// mounted there, and the daemon must not wait for itself.
func TestMachineRootAsLower(t *testing.T) {
	needRoot(t)
	b := newBox(t)
	b.lower = "/"
	b.mount()
	entries := ls(t, b.mnt+b.dir)
	require.NotContains(t, entries, "upper")
	require.NotContains(t, entries, "work")
	require.NotContains(t, entries, "mnt")
	require.Contains(t, entries, "lower")
	require.Empty(t, ls(t, b.mnt+"/proc"))
	require.NoError(t, os.Mkdir(b.mnt+"/proc/made", 0755))
	require.Equal(t, []string{"made"}, ls(t, b.mnt+"/proc"))
	out, err := runFor(20*time.Second, "chroot", b.mnt, "/bin/sh", "-ec", "echo x > /etc/layerfs-test; rm /etc/passwd; ls /etc | wc -l")
	require.NoError(t, err, out)
	require.FileExists(t, "/etc/passwd")
	require.NoFileExists(t, "/etc/layerfs-test")
	require.FileExists(t, b.upper+"/etc/layerfs-test")
}

// layerfs on layerfs, as `podman run --mount type=image,rw=true` has it.
func TestOnItself(t *testing.T) {
	b := newBox(t)
	put(t, b.lower, "a=1", "d/b=2", "d/c=3")
	b.mount()
	require.NoError(t, os.Remove(b.mnt+"/d/c"))
	for _, d := range []string{"u2", "w2", "m2"} {
		require.NoError(t, os.Mkdir(b.dir+"/"+d, 0755))
	}
	m2 := b.dir + "/m2"
	umount := b.mountWith("lowerdir="+b.mnt+",upperdir="+b.dir+"/u2,workdir="+b.dir+"/w2", m2)
	require.ElementsMatch(t, []string{"a", "d"}, ls(t, m2))
	require.Equal(t, []string{"b"}, ls(t, m2+"/d"))
	appendTo(t, m2+"/a", "+")
	require.NoError(t, os.Remove(m2+"/d/b"))
	require.NoError(t, os.Rename(m2+"/d", m2+"/e"))
	require.Empty(t, ls(t, m2+"/e"))
	inodes(t, m2)
	require.Equal(t, "1", read(t, b.mnt+"/a"))
	umount()
}

func TestReadOnly(t *testing.T) {
	b := newBox(t)
	put(t, b.lower, "a=1", "d/b=2")
	b.mountWith("lowerdir="+b.lower, b.mnt)
	_, err := os.OpenFile(b.mnt+"/a", os.O_RDWR, 0)
	require.ErrorIs(t, err, unix.EROFS)
	require.ErrorIs(t, os.WriteFile(b.mnt+"/n", nil, 0644), unix.EROFS)
	require.ErrorIs(t, os.Mkdir(b.mnt+"/n", 0755), unix.EROFS)
	require.ErrorIs(t, os.Remove(b.mnt+"/a"), unix.EROFS)
	require.ErrorIs(t, os.Rename(b.mnt+"/a", b.mnt+"/b"), unix.EROFS)
	require.ErrorIs(t, os.Chmod(b.mnt+"/a", 0600), unix.EROFS)
	require.ErrorIs(t, os.Link(b.mnt+"/a", b.mnt+"/b"), unix.EROFS)
	require.Equal(t, "1", read(t, b.mnt+"/a"))
}
