using BlockServer.Blockd;
using BlockServer.Core;
using BlockServer.Core.Api;
using Xunit;

namespace BlockServer.Tests.Unit.Daemon;

/// <summary>The log by itself, and the judge of disks.</summary>
public sealed class EventLogTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("blockd-events-").FullName;
    private readonly HandClock _clock = new();

    private string FilePath => Path.Combine(_folder, "events.jsonl");

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Fact]
    public void A_fault_is_open_once_changes_its_detail_and_is_over_once()
    {
        using var log = new EventLog(_clock, null);
        var published = new List<EventInfo>();
        log.Published += published.Add;
        log.Raise(EventCatalogue.DiskFailed, "a", "first");
        log.Raise(EventCatalogue.DiskFailed, "a", "first");
        log.Raise(EventCatalogue.DiskFailed, "a", "second");
        log.Raise(EventCatalogue.DiskFailed, "b", "another disk");
        log.Clear(EventCatalogue.DiskFailed, "a");
        log.Clear(EventCatalogue.DiskFailed, "a");
        log.Clear(EventCatalogue.DiskHung, "a");
        Assert.Equal(["first", "second", "another disk", "second"], published.Select(e => e.Detail));
        Assert.Equal([1, 2, 3, 4], published.Select(e => e.Change));
        Assert.Equal([1, 1, 2, 1], published.Select(e => e.Id));
        EventInfo open = Assert.Single(log.List(onlyOpen: true));
        Assert.Equal(("b", "critical", true), (open.Subject, open.Severity, open.Advice.Length > 0));
        Assert.Equal(1, log.Open("critical"));
        Assert.NotNull(log.List()[1].ClearedAt);
        log.Raise(EventCatalogue.DiskFailed, "a", "again");
        Assert.Equal([3, 2, 1], log.List().Select(e => e.Id));
        Assert.Equal(["again"], log.List(since: 4).Select(e => e.Detail));
    }

    [Fact]
    public void What_is_seen_no_more_is_over_and_only_of_the_codes_that_were_looked_for()
    {
        using var log = new EventLog(_clock, null);
        log.Raise(EventCatalogue.PolicyFailed, "p", "by somebody else");
        var codes = new HashSet<string> { EventCatalogue.DiskFailed, EventCatalogue.StoreLow };
        log.Reconcile(codes, [new(EventCatalogue.DiskFailed, "a", "x"), new(EventCatalogue.StoreLow, "b", "y")]);
        log.Reconcile(codes, [new(EventCatalogue.StoreLow, "b", "y")]);
        Assert.Equal([(EventCatalogue.StoreLow, true), (EventCatalogue.DiskFailed, false), (EventCatalogue.PolicyFailed, true)], log.List().Select(e => (e.Code, e.IsOpen)));
    }

    [Fact]
    public void The_same_note_is_taken_once_a_minute()
    {
        using var log = new EventLog(_clock, null);
        for (int i = 0; i < 90; i++)
        {
            log.Note(EventCatalogue.SessionLost, "127.0.0.1:1", "gone");
            _clock.UtcNow += TimeSpan.FromSeconds(1);
        }

        log.Note(EventCatalogue.SessionLost, "127.0.0.1:2", "gone");
        Assert.Equal(3, log.List().Count);
        Assert.All(log.List(), e => Assert.False(e.IsOpen));
        Assert.Empty(log.List(onlyOpen: true));
        Assert.Empty(log.List(severity: "warning"));
    }

    [Fact]
    public void The_file_brings_everything_back_and_survives_a_torn_and_a_damaged_line()
    {
        using (var log = new EventLog(_clock, FilePath))
        {
            log.Raise(EventCatalogue.DiskFailed, "a", "x");
            log.Raise(EventCatalogue.StoreLow, "b", "y");
            log.Clear(EventCatalogue.DiskFailed, "a");
        }

        string[] lines = File.ReadAllLines(FilePath);
        Assert.Equal(3, lines.Length);
        File.WriteAllText(FilePath, string.Join('\n', lines[0], "{\"id\":7,\"what\":[", lines[1], lines[2], lines[0][..20]));
        using (var log = new EventLog(_clock, FilePath))
        {
            Assert.Equal([(2, true), (1, false)], log.List().Select(e => (e.Id, e.IsOpen)));
            log.Raise(EventCatalogue.StoreLow, "b", "y"); // open already
            log.Raise(EventCatalogue.StoreFull, "b", "z");
        }

        using var last = new EventLog(_clock, FilePath);
        Assert.Equal([3, 2, 1], last.List().Select(e => e.Id));
        Assert.Equal([4L, 2L, 3L], last.List().Select(e => e.Change));
    }

    [Fact]
    public void File_and_memory_are_bounded_and_an_open_fault_is_never_forgotten()
    {
        using (var log = new EventLog(_clock, FilePath))
        {
            log.Raise(EventCatalogue.DiskFailed, "old", "still there");
            for (int i = 0; i < 12_000; i++)
            {
                _clock.UtcNow += TimeSpan.FromMinutes(1);
                log.Note(EventCatalogue.TaskFailed, "t" + TestDaemon.Text(i), new string('x', 100));
            }

            Assert.Equal(EventLog.KeptMax, log.List().Count);
            Assert.True(log.IsOpen(EventCatalogue.DiskFailed, "old"));
        }

        Assert.InRange(new FileInfo(FilePath).Length, 1, 6 << 20);
        using var again = new EventLog(_clock, FilePath);
        Assert.Equal(EventLog.KeptMax, again.List().Count);
        Assert.True(again.IsOpen(EventCatalogue.DiskFailed, "old"));
    }

    [Fact]
    public void A_folder_that_cannot_be_written_harms_nothing()
    {
        using var log = new EventLog(_clock, Path.Combine(_folder, "is", "not", "there"));
        log.Raise(EventCatalogue.DiskFailed, "a", "x");
        Assert.Single(log.List());
    }

    [Fact]
    public void The_document_is_what_the_catalogue_says()
    {
        string path = Path.Combine(OpenApiTests.Root, "docs", "events.md");
        string document = EventCatalogue.Document();
        if (Environment.GetEnvironmentVariable("BLOCKSERVER_WRITE_DOCS") == "1") File.WriteAllText(path, document);
        Assert.True(File.Exists(path) && document == File.ReadAllText(path), "docs/events.md differs from the catalogue: run the unit tests with BLOCKSERVER_WRITE_DOCS=1");
        Assert.Equal(EventCatalogue.All.Count, EventCatalogue.All.Select(k => k.Code).Distinct().Count());
        Assert.All(EventCatalogue.All, k => Assert.True(
            EventCatalogue.Severities.Contains(k.Severity) && k.Cause.Length > 0 && k.Advice.Length > 0 && k.IsFault == (k.Ends is not null), k.Code));
    }

    [Fact]
    public void A_disk_hangs_after_five_seconds_and_until_it_answers()
    {
        var watch = new DiskJudge(10);
        DiskLook look = Look();
        Assert.Empty(Codes(watch, 0, 10, 1, look));
        Assert.Empty(Codes(watch, 4, 10, 1, null));
        Assert.Equal([EventCatalogue.DiskHung], Codes(watch, 5, 10, 1, null));
        Assert.Equal([EventCatalogue.DiskHung], Codes(watch, 50, 10, 3, null));
        Assert.Empty(Codes(watch, 52, 11, 2, null));
        Assert.Empty(Codes(watch, 60, 11, 0, null)); // idle
        Assert.Empty(Codes(watch, 61, 11, 1, null)); // and asked again only now
    }

    [Fact]
    public void A_slow_disk_is_told_and_forgiven()
    {
        var watch = new DiskJudge(10);
        Assert.Empty(Codes(watch, 0, 1, 0, Look(operations: 100, nanos: 1_000_000_000)));
        Assert.Equal([EventCatalogue.DiskSlow], Codes(watch, 2, 2, 1, Look(operations: 101, nanos: 2_000_000_000)));
        Assert.Equal([EventCatalogue.DiskSlow], Codes(watch, 4, 3, 1, Look(operations: 102, nanos: 2_300_000_000))); // not yet quick
        Assert.Empty(Codes(watch, 6, 4, 0, Look(operations: 202, nanos: 2_400_000_000)));
    }

    [Fact]
    public void Errors_stay_for_an_hour_and_levels_have_a_gap()
    {
        var watch = new DiskJudge(10);
        Assert.Empty(Codes(watch, 0, 1, 0, Look()));
        Assert.Equal([EventCatalogue.DiskErrors, EventCatalogue.Checksum], Codes(watch, 2, 2, 0, Look(ioErrors: 1, checksums: 2)));
        Assert.Equal([EventCatalogue.DiskErrors, EventCatalogue.Checksum], Codes(watch, 3000, 3, 0, Look(ioErrors: 1, checksums: 3)));
        Assert.Equal([EventCatalogue.Checksum], Codes(watch, 3602, 3, 0, Look(ioErrors: 1, checksums: 3)));
        Assert.True(watch.IsWorthALook(new DiskPulse("d", 3, 0))); // though it rests
        Assert.Empty(Codes(watch, 6600, 3, 0, Look(ioErrors: 1, checksums: 3)));
        Assert.False(watch.IsWorthALook(new DiskPulse("d", 3, 0)));
        Assert.Equal([EventCatalogue.StoreLow], Codes(watch, 6602, 4, 0, Look(ioErrors: 1, checksums: 3, free: 9)));
        Assert.Equal([EventCatalogue.StoreLow], Codes(watch, 6604, 5, 0, Look(ioErrors: 1, checksums: 3, free: 12)));
        Assert.Equal([EventCatalogue.StoreFull], Codes(watch, 6606, 6, 0, Look(ioErrors: 1, checksums: 3, free: 0)));
        Assert.Empty(Codes(watch, 6608, 7, 0, Look(ioErrors: 1, checksums: 3, free: 13)));
        Assert.Equal([EventCatalogue.DiskBadBlocks], Codes(watch, 6610, 8, 0, Look(ioErrors: 1, checksums: 3, bad: 1)));
        Assert.Equal([EventCatalogue.DiskFailed], Codes(watch, 6612, 9, 0, Look(StoreState.Failed, ioErrors: 7, checksums: 3, free: 0)));
    }

    [Fact]
    public void Levels_of_space_and_slots_are_told_one_by_one_and_each_has_a_gap()
    {
        var watch = new DiskJudge(10, metadataWarnPercent: 85);
        string[] At(int second, int free, ulong slots) => Codes(watch, second, (ulong)second, 0, Look(free: Math.Max(0, free - 5), soon: free, kept: 5, slots: slots));
        Assert.Empty(At(1, 50, 849));
        Assert.Equal([EventCatalogue.MetadataLow], At(2, 50, 850));
        Assert.Equal([EventCatalogue.MetadataLow], At(3, 50, 830));
        Assert.Equal([EventCatalogue.StoreLow, EventCatalogue.MetadataLow], At(4, 14, 850));
        Assert.Equal([EventCatalogue.StoreProtected], At(5, 14, 950));
        Assert.Equal([EventCatalogue.StoreProtected], At(6, 14, 945));
        Assert.True(watch.IsWorthALook(new DiskPulse("d", 6, 0))); // though it rests
        Assert.Equal([EventCatalogue.StoreLow, EventCatalogue.MetadataLow], At(7, 14, 930));
        Assert.Equal([EventCatalogue.StoreLow], At(8, 14, 810));
        Assert.Equal([EventCatalogue.StoreProtected], At(9, 5, 800));
        Assert.Equal([EventCatalogue.StoreFull], At(10, 1, 800)); // the reserve alone
        Assert.Equal([EventCatalogue.StoreProtected], At(11, 5, 800));
        Assert.Equal([EventCatalogue.StoreLow], At(12, 6, 800));
        Assert.Empty(At(13, 50, 800));
        Assert.False(watch.IsWorthALook(new DiskPulse("d", 13, 0)));
    }

    [Fact]
    public void Slots_that_come_back_with_the_next_checkpoint_are_no_fault()
    {
        var watch = new DiskJudge(10, metadataWarnPercent: 85);
        Assert.Empty(Codes(watch, 1, 1, 0, Look(slots: 1000, returning: 200)));
        Assert.Equal([EventCatalogue.MetadataLow], Codes(watch, 2, 2, 0, Look(slots: 1000, returning: 150)));
        Assert.Equal([EventCatalogue.StoreProtected], Codes(watch, 3, 3, 0, Look(slots: 1000, returning: 50)));
        Assert.Empty(Codes(watch, 4, 4, 0, Look(slots: 1000, returning: 1000)));

        DiskLook look = Look(slots: 990, returning: 40); // 50 are kept and the volume's head takes one
        Assert.Equal(0UL, DiskSpace.PromisableBytes(look.Stats));
        Assert.Equal(0, DiskSpace.Fitting(look.Stats, Units.MiB));
        look = Look(slots: 990, returning: 51);
        Assert.Equal(10 * Units.MiB, DiskSpace.PromisableBytes(look.Stats));
        Assert.Equal(5, DiskSpace.Fitting(look.Stats, Units.MiB));
        Assert.Equal(939UL, DiskSpace.Describe(look.Stats, 0, 0, null).MetadataSlotsUsed);
    }

    private static string[] Codes(DiskJudge watch, int seconds, ulong answered, int inFlight, DiskLook? look) =>
        [.. watch.Judge(TimeSpan.FromSeconds(seconds), new DiskPulse("d", answered, inFlight), look).Select(f => f.Code)];

    private static DiskLook Look(
        StoreState state = StoreState.Online, ulong ioErrors = 0, ulong checksums = 0, int free = 50, ulong bad = 0, ulong operations = 0, ulong nanos = 0,
        int? soon = null, int kept = 1, ulong slots = 0, ulong returning = 0)
    {
        const ulong Blocks = 25_600;
        return new DiskLook(
            state,
            new StoreStats
            {
                BlocksTotal = Blocks, BlocksUsed = 0, BlocksQuarantined = 0, BlocksReserved = Blocks / 100, SlotsTotal = 1000, SlotsUsed = slots, SlotsReturning = returning, SlotsKept = 50,
                BlocksKept = Blocks / 100 * (ulong)kept, BlocksFreeSoon = Blocks / 100 * (ulong)(soon ?? free + 1), MetadataResidentBytes = 0,
                MetadataBudgetBytes = 0, RingOccupancy = 0, Checkpoints = 0, ChecksumErrors = checksums, IoErrors = ioErrors,
                FailReason = state == StoreState.Failed ? "a flush failed" : null, BlocksBad = bad,
            },
            Blocks * Units.BlockBytes / 100 * (ulong)free, operations, nanos);
    }

    private sealed class HandClock : IWallClock
    {
        public DateTimeOffset UtcNow { get; set; } = new(2026, 1, 1, 0, 0, 0, TimeSpan.Zero);
    }
}
