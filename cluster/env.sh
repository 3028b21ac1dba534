# shellcheck shell=bash
# The environment of a rank, each variable with its reason. Sourced by mpirun.sh, rank.sh and
# train.sbatch; what is set before stays.

# OpenMP threads that wait must sleep, not spin: workers, loader threads and the thread that makes
# the MPI calls share the cores.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
# The number of threads decides how oneDNN splits its sums, so it belongs to the job
# (threads_per_worker): OpenMP must not lower it when the machine is busy.
export OMP_DYNAMIC=false
# rank.sh or Slurm gives a rank its CPUs. Binding by OpenMP within them would put the threads of all
# workers of a rank on the same few.
export OMP_PROC_BIND=false

# Open MPI refuses to start as root unless told twice; in a container root is the usual user.
if ((EUID == 0)); then
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
