#!/usr/bin/env bash
# Fetches the data that benchmarks and experiments use and no Python package brings, into data/, which git ignores:
#   data/fashion-mnist   70,000 images of clothes (Zalando Research, MIT), from the Debian package dataset-fashion-mnist
# Does nothing where they are there. A file that is not what it was is refused.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

folder=data/fashion-mnist
say() { echo "data: $*" >&2; }

# of the unpacked files
sums="5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b t10k-images-idx3-ubyte.gz
0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34 t10k-labels-idx1-ubyte.gz
c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888 train-images-idx3-ubyte.gz
bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9 train-labels-idx1-ubyte.gz"

check() {
    local sum name
    while read -r sum name; do
        [ "$(gzip -dc "$folder/$name" | sha256sum | cut -d ' ' -f 1)" = "$sum" ] || return 1
    done <<<"$sums"
}

if [ -d "$folder" ] && check 2>/dev/null; then
    exit 0
fi
if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
    say "apt-get and dpkg-deb are needed to fetch Fashion-MNIST. Or put its four idx.gz files into $folder yourself."
    exit 1
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
say "fetching the Debian package dataset-fashion-mnist (31 MB); it is not installed"
if ! (cd "$scratch" && apt-get download -qq dataset-fashion-mnist >&2); then
    [ "$(id -u)" = 0 ] || { say "apt-get download failed: run apt-get update, as root, and try again"; exit 1; }
    apt-get update -qq >&2
    (cd "$scratch" && apt-get download -qq dataset-fashion-mnist >&2)
fi
dpkg-deb -x "$scratch"/dataset-fashion-mnist_*.deb "$scratch/unpacked"
mkdir -p "$folder"
cp "$scratch"/unpacked/usr/share/datasets/fashion-mnist/*.gz "$folder/"
check || { say "a file is not what it was when this was written: nothing in $folder can be trusted"; exit 1; }
say "Fashion-MNIST is in $folder"
