using BlockServer.Blockd;
using BlockServer.Cluster;
using BlockServer.Core;
using BlockServer.Core.Api;
using BlockServer.Io;
using BlockServer.Tests.Unit.Cluster;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>Tasks as resources: what they show, how they end, and what a restart makes of them.</summary>
public sealed class TaskRegistryTests
{
    private readonly MemoryMetaStore _meta = new();

    private static CancellationToken Stop => TestContext.Current.CancellationToken;

    [Fact]
    public async Task A_task_shows_units_rate_remaining_time_and_its_end()
    {
        var time = new ManualTime();
        var tasks = new TaskRegistry(_meta, SystemClock.Instance, Assert.Fail, time);
        var (reported, end) = (new TaskCompletionSource(), new TaskCompletionSource<string>());
        TaskInfo begun = await tasks.StartAsync(new TaskSpec("scrub", "v", 7, Unit: "blocks"), run =>
        {
            run.Report(0, 1000);
            time.Move(TimeSpan.FromSeconds(2));
            run.Report(200, 1000);
            run.Note("halfway soon");
            reported.SetResult();
            return end.Task;
        });
        Assert.Equal(("scrub", "v", "running", "blocks", 7u), (begun.Kind, begun.Target, begun.State, begun.Unit, begun.VolumeId!.Value));
        await reported.Task.WaitAsync(Stop);
        TaskInfo shown = tasks.Find(begun.Id)!;
        Assert.Equal((200ul, 1000ul, 0.2, 100, 8), (shown.Done, shown.Total, shown.Progress, shown.Rate!.Value, shown.RemainingSeconds!.Value));
        Assert.Equal(["begun", "halfway soon"], shown.History!.Select(n => n.Text));
        Assert.Null(tasks.List()[0].History);

        end.SetResult("all good");
        TaskInfo ended = (await tasks.EndedAsync(begun.Id, Stop))!;
        Assert.Equal(("succeeded", "all good", 1.0, 1000ul), (ended.State, ended.Result, ended.Progress, ended.Done));
        Assert.Null(ended.Rate);
        Assert.Null(ended.RemainingSeconds);
    }

    [Fact]
    public async Task A_failure_has_a_code_and_the_words_of_its_exception()
    {
        var tasks = new TaskRegistry(_meta, SystemClock.Instance, Assert.Fail);
        TaskInfo coded = tasks.Start(new TaskSpec("scrub", "a"), _ => throw new TaskException("bad-blocks", "2 bad blocks"));
        TaskInfo other = tasks.Start(new TaskSpec("scrub", "b"), _ => throw new IOException("the disk is gone"));
        TaskInfo first = (await tasks.EndedAsync(coded.Id, Stop))!, second = (await tasks.EndedAsync(other.Id, Stop))!;
        Assert.Equal(("failed", "bad-blocks", "2 bad blocks"), (first.State, first.Code, first.Result));
        Assert.Equal(("failed", "failed", "the disk is gone"), (second.State, second.Code, second.Result));
    }

    [Fact]
    public async Task Cancelling_is_shown_at_once_and_cancelled_when_the_work_has_ended()
    {
        var tasks = new TaskRegistry(_meta, SystemClock.Instance, Assert.Fail);
        var (asked, go) = (new TaskCompletionSource(), new TaskCompletionSource());
        TaskInfo task = tasks.Start(new TaskSpec("scrub", "v"), async run =>
        {
            asked.SetResult();
            await go.Task;
            run.Cancel.ThrowIfCancellationRequested();
            return "done";
        });
        await asked.Task.WaitAsync(Stop);
        Assert.True(tasks.Cancel(task.Id));
        Assert.Equal("cancelling", tasks.Find(task.Id)!.State);
        go.SetResult();
        Assert.Equal("cancelled", (await tasks.EndedAsync(task.Id, Stop))!.State);
        Assert.True(tasks.Cancel(task.Id));
        Assert.Equal("cancelled", tasks.Find(task.Id)!.State);
        Assert.Null(tasks.Find(99));
        Assert.Null(await tasks.EndedAsync(99, Stop));
    }

    [Fact]
    public async Task What_nobody_takes_up_after_a_restart_has_failed_as_interrupted()
    {
        TaskInfo task = await StopInWorkAsync(new TaskSpec("scrub", "v"));

        var next = new TaskRegistry(_meta, SystemClock.Instance, Assert.Fail);
        await next.LoadAsync();
        Assert.Equal("running", next.Find(task.Id)!.State);
        await next.FailInterrupted();
        TaskInfo failed = next.Find(task.Id)!;
        Assert.Equal(("failed", "interrupted"), (failed.State, failed.Code));
        Assert.NotNull(failed.EndedAt);
        Assert.Equal(task.StartedAt, failed.StartedAt);

        // It stays so, and its number is its own for ever.
        var last = new TaskRegistry(_meta, SystemClock.Instance, Assert.Fail);
        await last.LoadAsync();
        await last.FailInterrupted();
        Assert.Equal(failed.EndedAt, last.Find(task.Id)!.EndedAt);
        Assert.Equal(failed.State, (await last.EndedAsync(task.Id, Stop))!.State);
        Assert.True(last.Start(new TaskSpec("scrub", "v"), _ => Task.FromResult("")).Id > task.Id);
    }

    [Fact]
    public async Task A_resumable_task_goes_on_under_its_number_with_parameters_and_checkpoint()
    {
        TaskInfo task = await StopInWorkAsync(new TaskSpec("drain", "disk-1", Parameters: "to=disk-2"), "volume 17");

        var next = new TaskRegistry(_meta, SystemClock.Instance, Assert.Fail);
        await next.LoadAsync();
        Assert.Empty(next.Interrupted("move"));
        TaskRecord left = Assert.Single(next.Interrupted("drain"));
        Assert.Equal(("disk-1", "to=disk-2", "volume 17"), (left.Subject, left.Parameters, left.Checkpoint));
        TaskInfo again = next.Start(new TaskSpec("drain", left.Subject), run =>
            Task.FromResult($"{run.IsResumed} {run.Parameters} {run.Checkpoint}"));
        Assert.Empty(next.Interrupted("drain"));
        await next.FailInterrupted();
        TaskInfo ended = (await next.EndedAsync(again.Id, Stop))!;
        Assert.Equal((task.Id, task.StartedAt, "succeeded", "True to=disk-2 volume 17"), (ended.Id, ended.StartedAt, ended.State, ended.Result));
        Assert.Equal(["begun", "the daemon ended", "goes on after the restart", "succeeded"], ended.History!.Select(n => n.Text));
        TaskInfo other = next.Start(new TaskSpec("drain", "disk-1"), run => Task.FromResult($"{run.IsResumed}"));
        Assert.NotEqual(task.Id, other.Id);
        Assert.Equal("False", (await next.EndedAsync(other.Id, Stop))!.Result);
    }

    [Fact]
    public async Task Who_is_told_of_a_task_finds_it_after_a_crash()
    {
        var tasks = new TaskRegistry(_meta, SystemClock.Instance, Assert.Fail);
        var isDurable = new TaskCompletionSource<bool>();
        TaskInfo task = await tasks.StartAsync(new TaskSpec("scrub", "v"), async _ =>
        {
            isDurable.SetResult((await _meta.RangeAsync(TaskRecord.Prefix)).Count == 1);
            return await new TaskCompletionSource<string>().Task;
        });
        Assert.True(await isDurable.Task.WaitAsync(Stop), "the work began before its record was durable");
        var next = new TaskRegistry(_meta, SystemClock.Instance, Assert.Fail); // no stop: the process was killed
        await next.LoadAsync();
        Assert.Equal(task.Id, Assert.Single(next.Interrupted("scrub")).Id);
    }

    [Fact]
    public async Task Who_was_asked_to_end_is_cancelled_by_a_restart()
    {
        var tasks = new TaskRegistry(_meta, SystemClock.Instance, Assert.Fail);
        TaskInfo task = await tasks.StartAsync(new TaskSpec("scrub", "v"), _ => new TaskCompletionSource<string>().Task);
        Assert.True(tasks.Cancel(task.Id));
        await tasks.FlushAsync();
        var next = new TaskRegistry(_meta, SystemClock.Instance, Assert.Fail);
        await next.LoadAsync();
        await next.FailInterrupted();
        Assert.Equal("cancelled", next.Find(task.Id)!.State);
    }

    [Fact]
    public async Task History_and_the_notes_of_a_task_are_bounded_in_RAM_and_in_the_metadata()
    {
        var tasks = new TaskRegistry(_meta, SystemClock.Instance, Assert.Fail);
        TaskInfo noted = tasks.Start(new TaskSpec("scrub", "v"), run =>
        {
            for (int i = 0; i < 100; i++) run.Note($"note {i}");
            return Task.FromResult("");
        });
        TaskInfo ended = (await tasks.EndedAsync(noted.Id, Stop))!;
        Assert.Equal(TaskRegistry.NotesMax, ended.History!.Count);
        Assert.Equal(("begun", "succeeded"), (ended.History[0].Text, ended.History[^1].Text));
        TaskInfo open = tasks.Start(new TaskSpec("scrub", "open"), _ => new TaskCompletionSource<string>().Task);
        for (int i = 0; i < TaskRegistry.EndedMax + 20; i++)
            await tasks.EndedAsync(tasks.Start(new TaskSpec("scrub", "v"), _ => Task.FromResult("")).Id, Stop);
        await tasks.FlushAsync();
        Assert.Equal(TaskRegistry.EndedMax + 1, tasks.List().Count);
        Assert.Equal(TaskRegistry.EndedMax + 1, (await _meta.RangeAsync(TaskRecord.Prefix, Stop)).Count);
        Assert.Null(tasks.Find(noted.Id));
        Assert.NotNull(tasks.Find(open.Id));
    }

    [Fact]
    public async Task A_damaged_record_is_forgotten_and_told()
    {
        await _meta.TransactAsync([], [new MetaChange(TaskRecord.KeyOf(4), "{"u8.ToArray())], Stop);
        var warnings = new List<string>();
        var tasks = new TaskRegistry(_meta, SystemClock.Instance, warnings.Add);
        await tasks.LoadAsync();
        Assert.Empty(tasks.List());
        Assert.Contains(TaskRecord.KeyOf(4), Assert.Single(warnings), StringComparison.Ordinal);
        Assert.Empty(await _meta.RangeAsync(TaskRecord.Prefix, Stop));
    }

    [Fact]
    public async Task While_the_metadata_fail_tasks_go_on_and_it_is_told_once()
    {
        var warnings = new List<string>();
        var tasks = new TaskRegistry(new DeafMetaStore(_meta), SystemClock.Instance, warnings.Add);
        for (int i = 0; i < 3; i++)
        {
            TaskInfo task = tasks.Start(new TaskSpec("scrub", "v"), _ => Task.FromResult("done"));
            Assert.Equal("succeeded", (await tasks.EndedAsync(task.Id, Stop))!.State);
        }

        Assert.Single(warnings);
        await tasks.StopAsync();
    }

    private async Task<TaskInfo> StopInWorkAsync(TaskSpec spec, string? checkpoint = null)
    {
        var tasks = new TaskRegistry(_meta, SystemClock.Instance, Assert.Fail);
        var working = new TaskCompletionSource();
        TaskInfo task = await tasks.StartAsync(spec, async run =>
        {
            if (checkpoint is not null) await run.SaveCheckpoint(checkpoint);
            working.SetResult();
            await Task.Delay(Timeout.Infinite, run.Cancel);
            return "";
        });
        await working.Task.WaitAsync(Stop);
        await tasks.StopAsync();
        Assert.Equal("running", tasks.Find(task.Id)!.State);
        return task;
    }

    /// <summary>A metadata store whose transactions all fail.</summary>
    private sealed class DeafMetaStore(IMetaStore inner) : IMetaStore
    {
        public ValueTask<MetaEntry?> GetAsync(string key, CancellationToken cancel = default) => inner.GetAsync(key, cancel);

        public ValueTask<IReadOnlyList<MetaEntry>> RangeAsync(string prefix, CancellationToken cancel = default) => inner.RangeAsync(prefix, cancel);

        public ValueTask<MetaResult> TransactAsync(IReadOnlyList<MetaCompare> compares, IReadOnlyList<MetaChange> changes, CancellationToken cancel = default) =>
            new(new MetaResult(MetaOutcome.Unknown, 0));

        public ValueTask<long> GrantLeaseAsync(TimeSpan timeToLive, CancellationToken cancel = default) => inner.GrantLeaseAsync(timeToLive, cancel);

        public ValueTask<bool> KeepAliveAsync(long leaseId, CancellationToken cancel = default) => inner.KeepAliveAsync(leaseId, cancel);

        public IAsyncEnumerable<MetaEvent> WatchAsync(string prefix, long fromRevision, CancellationToken cancel) => inner.WatchAsync(prefix, fromRevision, cancel);

        public ValueTask DisposeAsync() => default;
    }
}
