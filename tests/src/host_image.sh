# Makes the image of a host of tests: Debian's smallest system, without a registry of images.
# $1: Debian's suite, $2: its mirror, $3: the image's name, $4: an empty directory
set -euo pipefail
debootstrap --variant=minbase "$1" "$4" "$2"
rm -rf "$4"/var/cache/apt/* "$4"/var/lib/apt/lists/* "$4"/usr/share/{doc,man,locale}
tar -C "$4" -c . | docker import - "$3"
