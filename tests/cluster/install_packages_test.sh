#!/bin/bash
# cmake/install_packages.sh against a made-up dpkg and apt: asks apt for what is missing, and for
# nothing else.
# shellcheck source-path=SCRIPTDIR source=support.sh
source "$(dirname "${BASH_SOURCE[0]}")/support.sh"
cd "$work" || exit 1

# dpkg-query knows all but what the file `missing` lists; sudo is nothing special here; apt-get writes
# down what it is asked, and fails where the file `broken` is.
mkdir bin
cat >bin/dpkg-query <<'STUB'
#!/bin/bash
if grep -qxF -- "${!#}" missing; then exit 1; fi
printf 'installed '
STUB
cat >bin/apt-get <<'STUB'
#!/bin/bash
echo "$*" >>asked
if [[ -e broken ]]; then echo "no such mirror"; exit 100; fi
STUB
cat >bin/sudo <<'STUB'
#!/bin/bash
if [[ $1 == -n ]]; then shift; fi
exec "$@"
STUB
chmod +x bin/*
touch missing
run() { PATH=$work/bin:$PATH "$repository/cmake/install_packages.sh" >out 2>&1 </dev/null; }

run
expect "exit code when all is there" $? 0
check "apt is not started" test ! -e asked
check "nothing is said" test ! -s out

printf 'ccache\nlibgtest-dev\n' >missing
run
expect "exit code of an installation" $? 0
check "one line says what" contains out "install: apt-get installs ccache libgtest-dev"
expect "lines" "$(wc -l <out)" 1
check "apt is asked for the missing alone" grep -qE 'install --no-install-recommends ccache libgtest-dev$' asked

touch broken
run
expect "exit code when apt fails" $? 1
check "apt's own words are shown" contains out "no such mirror"
check "the remedy is named" contains out "apt-get install ccache libgtest-dev"

# On another system.
mkdir elsewhere
ln -s "$(command -v bash)" "$(command -v dirname)" elsewhere
PATH=$work/elsewhere bash "$repository/cmake/install_packages.sh" >out 2>&1
expect "exit code without dpkg" $? 1
check "the packages are named" contains out "libopenmpi-dev"

finish
