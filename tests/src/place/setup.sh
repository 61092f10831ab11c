# $1 is an empty directory for the layer.
mount -t tmpfs -o mode=755 tmpfs "$1"
mkdir "$1/changes" "$1/work" "$1/root"
mount -t overlay -o "lowerdir=/,upperdir=$1/changes,workdir=$1/work" overlay "$1/root"
cd "$1/root"
mount -t proc proc proc
mount --rbind /sys sys
mount -t bpf bpf sys/fs/bpf
mount --rbind /dev dev
mkdir -p run/netns
mount --rbind /run/netns run/netns
mount -t tmpfs tmpfs tmp
# Whatever Ebb is installed on this machine is not there, nor a ban on starting services.
rm -rf run/ebb var/lib/ebb etc/ebb etc/default/ebb usr/bin/ebb usr/local/bin/ebb usr/sbin/policy-rc.d
hash -r
printf 'ready\n'
exec chroot . cat
