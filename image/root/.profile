# Login shells read this and not .bashrc.
if [ -n "${BASH_VERSION-}" ]; then
  . /root/.bashrc
fi
