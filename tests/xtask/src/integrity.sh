# Runs as the last unit of a stock Debian with two empty disks; `integrity` (tests/system) reads the lines that it prints:
# integrity: ROUND DISK WORKLOAD NANOSECONDS.
set -eu
# Critical, so that `quiet` shows it.
say() { echo "<2>integrity: $*" > /dev/kmsg; }
exec 2> /run/said
trap '[ $? = 0 ] || say "failed: $(tail -n 1 /run/said)"' EXIT
head -c 32 /dev/urandom > /run/key
for disk in plain tags; do
    [ $disk = plain ] && options= || options="--integrity hmac-sha256"
    device=/dev/disk/by-id/virtio-$disk
    cryptsetup luksFormat --batch-mode --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 \
        $options $device /run/key
    cryptsetup open --key-file /run/key $device $disk
    mkfs.ext4 -q /dev/mapper/$disk
    mkdir /run/$disk
    mount /dev/mapper/$disk /run/$disk
done
# Appends as the ledger makes them, and longer writes; in turns.
for round in 1 2 3 4 5; do
    for workload in append-4k write-1m; do
        case $workload in
            append-4k) how="bs=4k count=300 oflag=append,dsync conv=notrunc" ;;
            write-1m) how="bs=1M count=32 conv=fsync" ;;
        esac
        for disk in plain tags; do
            start=$(date +%s%N)
            dd if=/dev/zero of=/run/$disk/$workload $how
            end=$(date +%s%N)
            say "$round $disk $workload $((end - start))"
        done
    done
done
say done
