# Root's shell in the box. An interactive login (`docker exec -it box bash`, a console of the platform) lands in the
# session, through the relay of `innkeeper attach`. A root shell, which the audit log knows of:
#
#   docker exec -it box innkeeper shell
#   docker exec -it -e INNKEEPER_NO_ATTACH=1 box bash
#
# and one that reads nothing and that nobody knows of, for a box that does not answer: bash --norc --noprofile.

# Fixed, and nothing in it that the agent can write: whatever root types is looked up here only.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH

case $- in
  *i*) ;;
  *) return ;;
esac

if [ -z "${INNKEEPER_SHELL-}" ] && [ -t 0 ] && [ -t 1 ] && [ -S /run/innkeeper/control.sock ]; then
  if [ -z "${INNKEEPER_NO_ATTACH-}" ]; then
    exec /usr/local/bin/innkeeper attach
  fi
  exec /usr/local/bin/innkeeper shell
fi

# The shell may have been started in a directory of the agent's (`docker exec -w`): tools read files of where they are.
cd /
unset HISTFILE
PS1='\[\e[31m\]root@\h\[\e[0m\]:\w\$ '
