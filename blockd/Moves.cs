using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using BlockServer.Io;

namespace BlockServer.Blockd;

/// <summary>The moves of volumes between disks, as tasks: those that are asked for, and at the start those that an earlier run left
/// half. Thread-safe.</summary>
internal sealed class Moves(Daemon daemon)
{
    // A disk or the metadata that do not serve for a moment are waited for; longer than that, and the move is given up.
    private const int TriesMax = 10;
    private const int SweepsMax = 50;
    private static readonly TimeSpan s_sweepEvery = TimeSpan.FromMilliseconds(100), s_leaveMax = TimeSpan.FromSeconds(5);
    private static readonly TimeSpan s_between = TimeSpan.FromSeconds(1);

    private readonly Lock _lock = new();
    private readonly Dictionary<uint, (TaskInfo Task, Task<string> Done)> _running = [];
    private readonly MoveGate _gate = new(daemon.Stores, daemon.Volumes, daemon.AppendStreams, TimeSpan.FromSeconds(5));
    private readonly MoveSeams _seams = new(new SystemRandom(), SystemClock.Instance, time => Task.Delay(time));

    /// <summary>What moves may cost.</summary>
    public MoveLimits Limits { get; set; } = new() { BytesPerSecond = daemon.Settings.MoveBytesPerSecond };

    /// <summary>Begins to move a volume and what shares blocks with it; the task. The same move again answers the same task.
    /// Throws <see cref="ApiException"/>.</summary>
    public async Task<TaskInfo> BeginAsync(VolumeRecord volume, Guid to) => Run(await RecordAsync(volume, to)).Task;

    /// <summary>Moves a volume and what shares blocks with it; returns when that is done or has failed. Throws
    /// <see cref="IOException"/> with a sentence.</summary>
    public async Task MoveAsync(VolumeRecord volume, Guid to, CancellationToken cancel)
    {
        MoveRecord record;
        try
        {
            record = await RecordAsync(volume, to);
        }
        catch (ApiException e)
        {
            throw new IOException(e.Message);
        }

        (TaskInfo task, Task<string> done) = Run(record);
        try
        {
            await done.WaitAsync(cancel);
        }
        catch (OperationCanceledException) when (cancel.IsCancellationRequested)
        {
            daemon.Tasks.Cancel(task.Id);
            await done.ContinueWith(static _ => { }, CancellationToken.None, TaskContinuationOptions.None, TaskScheduler.Default);
            throw;
        }
    }

    /// <summary>Goes on with every move that is written down, and deletes what ended ones have left.</summary>
    public async Task ResumeAsync()
    {
        foreach (MoveRecord move in daemon.Directory.Moves) Run(move);
        await SweepAsync();
    }

    /// <summary>What a clone builds on goes when the clone is gone; the rest with the next move or start.</summary>
    private async Task SweepAsync()
    {
        for (int i = 0; i < SweepsMax && !daemon.IsStopping && !await daemon.Directory.SweepMovesAsync(); i++) await Task.Delay(s_sweepEvery);
    }

    private async Task<MoveRecord> RecordAsync(VolumeRecord volume, Guid to)
    {
        (MoveRecord? move, DirectoryFault? fault) = await daemon.Directory.BeginMoveAsync(volume.Name, to);
        return move ?? throw AdminRoutes.Refusal(fault!);
    }

    private (TaskInfo Task, Task<string> Done) Run(MoveRecord move)
    {
        lock (_lock)
        {
            if (_running.TryGetValue(move.Id, out (TaskInfo Task, Task<string> Done) known)) return known;
            var done = new TaskCompletionSource<string>(TaskCreationOptions.RunContinuationsAsynchronously);
            TaskInfo task = daemon.Tasks.Start(
                new TaskSpec("move", NameOf(move), move.Members.Count == 1 ? move.Members[0].Id : null),
                run => RunAsync(move, part => run.Report(part), done, run.Cancel));
            return _running[move.Id] = (task, done.Task);
        }
    }

    private string NameOf(MoveRecord move) =>
        string.Join(", ", move.Members.Select(m => daemon.Directory.Find(m.Id)?.Name ?? m.Id.ToString(System.Globalization.CultureInfo.InvariantCulture)));

    private async Task<string> RunAsync(MoveRecord move, Action<double> progress, TaskCompletionSource<string> done, CancellationToken cancel)
    {
        try
        {
            string result = await PatientlyAsync(move.Id, progress, cancel);
            done.SetResult(result);
            return result;
        }
        catch (Exception e)
        {
            done.SetException(e);
            _ = done.Task.Exception; // somebody may wait for it, or nobody
            throw;
        }
        finally
        {
            lock (_lock) _running.Remove(move.Id);
        }
    }

    private async Task<string> PatientlyAsync(uint id, Action<double> progress, CancellationToken cancel)
    {
        for (int i = 1; ; i++)
        {
            try
            {
                return await OnceAsync(id, progress, cancel);
            }
            catch (MoveException e) when (e.CanGoOn && i < TriesMax)
            {
                await Task.Delay(s_between, CancellationToken.None);
            }
            catch (Exception e) when (e is MoveException or OperationCanceledException)
            {
                if (daemon.IsStopping) throw; // it goes on at the next start
                if (await daemon.Directory.AbandonMoveAsync(id) is { Code: not "no-such-move" } fault)
                    throw new IOException($"{e.Message}; and it could not be given up: {fault.Detail}");
                await SweepAsync();
                await daemon.Directory.SweepCopiesAsync();
                throw;
            }
        }
    }

    private async Task<string> OnceAsync(uint id, Action<double> progress, CancellationToken cancel)
    {
        MoveRecord move = daemon.Directory.Moves.FirstOrDefault(m => m.Id == id) ?? throw new MoveException(false, "the move has ended");
        StoreHost from = daemon.Stores.Find(move.From) ?? throw new MoveException(true, "the disk that it lies on is not in service");
        StoreHost to = daemon.Stores.Find(move.To) ?? throw new MoveException(true, "the disk that it goes to is not in service");
        var one = new VolumeMove(daemon.Directory, from, to, _gate, _seams, Limits, progress, cancel);
        IReadOnlyList<VolumeRecord> moved = await one.RunAsync(move);
        // Who reads from a disk that does not answer may do so for long; the volumes are where they should be all the same.
        if (await Task.WhenAny(one.Leaving, Task.Delay(s_leaveMax, CancellationToken.None)) == one.Leaving) await SweepAsync();
        return $"{moved.Count} volume{(moved.Count == 1 ? "" : "s")} moved from disk {from.Name} to {to.Name}, {SizeText.Format(one.CopiedBytes)} copied";
    }
}
