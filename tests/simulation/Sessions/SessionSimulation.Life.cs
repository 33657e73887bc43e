using BlockServer.Core;
using BlockServer.Protocols.Iscsi;
using BlockServer.Protocols.Iscsi.Scsi;
using BlockServer.Protocols.Nbd;
using BlockServer.Tests.Simulated;
using BlockServer.Tests.Simulated.Disk;

namespace BlockServer.Tests.Simulation.Sessions;

// One life of the process: what it serves, who comes, and how it ends.
public sealed partial class SessionSimulation : IIscsiTargets, INbdExports
{
    private enum Ending
    {
        Finish,
        Stop,
        Kill,
        PowerCut,
    }

    private readonly List<(VolumeModel Volume, ModelWrite Write)> _inFlight = [];
    private readonly List<SimSession> _sessions = [];
    private readonly List<SimConnection> _wires = [];
    private readonly List<NbdSession> _nbdServers = [];
    private IStore _store = null!;
    private IscsiTarget _target = null!;
    private IscsiOptions _iscsi = null!;
    private readonly List<string> _servers = [];
    private int _clientsRunning;

    /// <summary>The daemon was asked to stop.</summary>
    internal bool IsStopping { get; private set; }

    /// <summary>Clients may ask for more.</summary>
    internal bool IsWorking => !IsStopping && !IsBroken && RequestsLeft > 0;

    internal int RequestsLeft { get; set; }

    /// <summary>Connections break from time to time.</summary>
    internal bool HasCuts { get; private set; }

    /// <summary>Sessions of this life.</summary>
    internal IReadOnlyList<SimSession> Sessions => _sessions;

    IscsiAuthentication? IIscsiTargets.Discovery => null;

    IscsiLookup IIscsiTargets.Find(string targetName, string initiatorName, string peer) => targetName == TargetName
        ? new(IscsiLoginStatus.Success, new IscsiTargetEntry { Name = TargetName })
        : new(IscsiLoginStatus.NotFound);

    IReadOnlyList<IscsiListing> IIscsiTargets.List(string initiatorName, string? user, string peer) =>
        [new(TargetName, ["127.0.0.1:3260,1"])];

    ValueTask<NbdExport?> INbdExports.FindAsync(string name, string? identity)
    {
        SimUnit unit = _units.First(u => u.Model.Head.Name == name);
        IBlockDevice device = DeviceOf(unit);
        return new(new NbdExport { Name = name, Device = device, SizeBytes = device.SizeBytes });
    }

    IReadOnlyList<NbdListing> INbdExports.List(string? identity) => [.. _units.Select(u => new NbdListing(u.Model.Head.Name, ""))];

    /// <summary>A new connection to the iSCSI portal.</summary>
    internal SimConnection Connect()
    {
        (SimConnection client, SimConnection server) = Wire();
        SpawnServer("iSCSI", () => ServeIscsiAsync(server));
        return client;
    }

    /// <summary>A new connection to the NBD port, and what tells that the server has let go of it.</summary>
    internal (SimConnection Wire, Func<bool> HasEnded) ConnectNbd()
    {
        (SimConnection client, SimConnection server) = Wire();
        server.HearsNoBreak = false; // NBD has no pings: the kernel's keepalive is what ends such a connection
        var session = new NbdSession(Loop, server, this, new NbdOptions());
        _nbdServers.Add(session);
        if (IsStopping) session.RequestStop();
        bool hasEnded = false;
        SpawnServer("NBD", async () =>
        {
            await session.RunAsync();
            hasEnded = true;
        });
        return (client, () => hasEnded);
    }

    internal void Enlist(SimSession session)
    {
        _sessions.Add(session);
        foreach (SimUnit unit in _units)
        {
            var attentions = new AttentionOracle();
            session.Attentions[unit.LunField] = attentions;
            foreach (ushort code in unit.Causes) attentions.Allow(code);
            session.Events[unit.LunField] = unit.Causes.Count(code => code == SimUnit.LowSpace);
        }
    }

    /// <summary>The store of a unit runs low: every nexus is owed an attention, and an event unless an attention waits already.</summary>
    private void RunLow(SimUnit unit)
    {
        unit.Causes.Add(SimUnit.LowSpace);
        foreach (SimSession session in _sessions)
        {
            session.Attentions[unit.LunField].Allow(SimUnit.LowSpace);
            session.Events[unit.LunField]++;
        }

        unit.Unit!.OnLowSpace();
    }

    internal ModelWrite BeginWrite(SimUnit unit, ulong first, ulong sectors, bool isZero, ulong id)
    {
        ModelWrite write = unit.Model.Begin(id, first, sectors, isZero, Tick());
        _inFlight.Add((unit.Model, write));
        return write;
    }

    internal void EndWrite(SimUnit unit, ModelWrite write, bool isOk, bool isDurable)
    {
        unit.Model.End(write, isOk, isDurable || _durability == Core.Durability.Ack, Tick());
        Tick();
        _inFlight.RemoveAll(entry => ReferenceEquals(entry.Write, write));
    }

    internal void NeverHappened(SimUnit unit, ModelWrite write)
    {
        unit.Model.Never(write);
        _inFlight.RemoveAll(entry => ReferenceEquals(entry.Write, write));
    }

    private (SimConnection Client, SimConnection Server) Wire()
    {
        ulong[] delays = [1_000, 10_000, 10_000, 200_000, 2_000_000];
        (SimConnection client, SimConnection server) = SimConnection.Pair(Loop, 1 << (12 + Dice.NextBelow(7)));
        if (_isWalking)
        {
            (_cutsTarget ? server : client).BreaksAfterBytes = _cutAt!.Value;
            return (client, server);
        }

        client.DelayNanosMax = delays[Dice.NextBelow(delays.Length)];
        server.DelayNanosMax = delays[Dice.NextBelow(delays.Length)];
        if (HasCuts && Dice.NextChance(0.3))
        {
            SimConnection end = Dice.NextChance(0.5) ? client : server;
            end.BreaksAfterBytes = 1 + (long)Dice.NextBelow(1UL << (4 + Dice.NextBelow(15)));
            server.HearsNoBreak = Dice.NextChance(0.25);
        }

        _wires.Add(server);
        return (client, server);
    }

    private void SpawnServer(string frontEnd, Func<Task> serve)
    {
        string name = $"{frontEnd} from event {Loop.EventCount}";
        _servers.Add(name);
        Spawn(async () =>
        {
            await serve();
            _servers.Remove(name);
        });
    }

    private async Task ServeIscsiAsync(SimConnection server)
    {
        var login = new IscsiLogin(Loop, server, this, _iscsi);
        if (IsStopping) login.RequestStop();
        if (await login.RunAsync() is { } negotiated) await _target.ServeAsync(negotiated);
    }

    private void RunLife(bool isLast)
    {
        Loop = new SimLoop(_random.NextUInt64());
        _disk.Attach(Loop);
        SimDiskFaults drawn = SimDiskFaults.DrawHonest(_random);
        _disk.Faults = new SimDiskFaults { LatencyNanosMax = drawn.LatencyNanosMax, Slow = drawn.Slow };
        _sessions.Clear();
        _wires.Clear();
        _nbdServers.Clear();
        _servers.Clear();
        (_clientsRunning, IsStopping) = (0, false);
        RequestsLeft = 20 + _random.NextBelow(_options.RequestsPerLife);
        HasCuts = !isLast && _random.NextChance(0.7);
        foreach (SimUnit unit in _units) unit.Model.ForgetSettled();
        if (!TryOpen()) return;
        Serve();
        if (IsBroken) return;
        ulong start = Loop.EventCount;
        ulong crashAt = 500 + _random.NextBelow(_random.NextChance(0.7) ? 6_000UL : 40_000UL);
        var ending = isLast ? Ending.Finish : (Ending)_random.NextBelow(4);
        if (ending >= Ending.Kill) Loop.StopBeforeEvent = n => IsBroken || n >= start + crashAt;
        if (ending == Ending.Stop) Loop.Schedule(_random.NextBelow(30_000_000UL), Stop);
        for (int i = _news.NextBelow(4); i > 0; i--)
        {
            SimUnit low = _units[_news.NextBelow(_units.Count)];
            Loop.Schedule(_news.NextBelow(30_000_000UL), () => low.Loop!.PostFromAnywhere(() => RunLow(low)));
        }

        StartClients();
        bool ended = Loop.RunUntil(() => _clientsRunning == 0 || IsBroken, EventsPerLifeMax);
        if (IsBroken || Loop.IsStopped)
        {
            Crash(ending == Ending.PowerCut);
            return;
        }

        if (!ended)
        {
            Violate(ViolationKind.Hang, $"{_clientsRunning} clients hang");
            return;
        }

        if (ending == Ending.Finish && !isLast && _random.NextChance(0.3)) Stop();
        EndOrderly(ending == Ending.PowerCut);
    }

    private bool TryOpen()
    {
        Task<Opened> opening = Driver.OpenAsync(Loop, _disk, null, _durability).AsTask();
        Loop.RunUntil(() => opening.IsCompleted, EventsPerLifeMax);
        if (!opening.IsCompletedSuccessfully || opening.Result.Store is not { } store)
        {
            Violate(ViolationKind.Refused, $"the store does not open: {(opening.IsCompletedSuccessfully ? opening.Result.Refusal : opening.Exception)}");
            return false;
        }

        _store = store;
        foreach (SimUnit unit in _units)
        {
            bool isNew = store.Volumes.All(head => head.Id != unit.Model.Head.Id);
            if (isNew && Loop.Run(store.CreateVolumeAsync(unit.Model.Head)) != IoStatus.Ok)
                Violate(ViolationKind.WrongAnswer, "a volume could not be made");
            if (!isNew) JudgeContent(unit, isRestart: true);
        }

        // New volumes are durable from here on.
        if (Loop.Run(store.FlushAsync()) != IoStatus.Ok) Violate(ViolationKind.WrongAnswer, "the flush after opening failed");
        _powerWasCut = false;
        return !IsBroken;
    }

    private IBlockDevice DeviceOf(SimUnit unit)
    {
        IBlockDevice device = _store.OpenVolume(unit.Model.Head.Id)!;
        bool isHasty = _options.Breakage is SessionBreakage.AckBeforeStore or SessionBreakage.FlushForgotten;
        return isHasty ? new HastyDevice(device, _options.Breakage) : device;
    }

    // Longest way of a message between loops.
    private const ulong FarNanosMax = 50_000;

    private void Serve()
    {
        var scsi = new ScsiTarget(Loop, new ScsiTargetOptions { Name = TargetName });
        foreach (SimUnit unit in _units)
        {
            var options = new LogicalUnitOptions { Uuid = unit.Model.Head.Uuid, BlockBytes = unit.BlockBytes, Durability = _durability };
            IReservationStore kept = unit.Kept.On(Loop, _options.Breakage == SessionBreakage.ReservationsForgotten);
            unit.Begin();
            // In every second world the units with odd numbers are of another loop than their target.
            ILoop loop = unit.Lun % 2 == 1 && _hasFarUnits ? new SideLoop(Loop, FarNanosMax) : Loop;
            unit.Loop = loop;
            unit.Unit = new LogicalUnit(loop, DeviceOf(unit), options, kept);
            if (Loop.Run(unit.Unit.LoadAsync()) != IoStatus.Ok) Violate(ViolationKind.Refused, "reservations could not be loaded");
            scsi.SetLun(unit.Lun, unit.Unit);
            JudgeReservation(unit);
        }

        _iscsi = new IscsiOptions
        {
            BrokenRules = RulesOf(_options.Breakage),
            WindowCommands = _random.NextChance(0.3) ? 4 + _random.NextBelow(12) : 128,
            WindowBytes = _random.NextChance(0.3) ? 64 << 10 : 16 << 20,
            MaxRecvDataSegmentLength = _random.NextChance(0.5) ? 8192 : 262144,
        };
        bool isWrapped = _options.Breakage is SessionBreakage.AbortAnsweredEarly or SessionBreakage.AbortedAnswered
            or SessionBreakage.ReservationsIgnored or SessionBreakage.AttentionsSwallowed;
        _target = new IscsiTarget(Loop, isWrapped ? new BrokenTarget(scsi, _options.Breakage) : scsi, this, _iscsi);
    }

    private static IscsiBrokenRules RulesOf(SessionBreakage breakage) => breakage switch
    {
        SessionBreakage.DataSnUnchecked => IscsiBrokenRules.IgnoreDataSn,
        SessionBreakage.DigestsUnchecked => IscsiBrokenRules.IgnoreDigests,
        SessionBreakage.RepetitionsTaken => IscsiBrokenRules.TakeRepeatedCommands,
        SessionBreakage.ReinstatedAtOnce => IscsiBrokenRules.ReinstateAtOnce,
        SessionBreakage.AbortsOvertakeAnswers => IscsiBrokenRules.AnswerAbortsAtOnce,
        _ => IscsiBrokenRules.None,
    };

    /// <summary>A reservation that was to survive did.</summary>
    private void JudgeReservation(SimUnit unit)
    {
        ReservationOracle oracle = unit.Reservations;
        oracle.IsPlaying = false;
        if (!_keepsReservations) oracle.Forget(Tick());
        if (oracle.Current is not { IsFirm: true } held) return;
        if ((int)unit.Unit!.ReservationType != held.Type)
            Violate(ViolationKind.WrongReservation, $"LUN {unit.Lun}: type {held.Type} of {held.Holder} is lost, there is {unit.Unit.ReservationType}");
        Counters[SessionDid.KeptReservations]++;
    }

    private void StartClients()
    {
        int initiators = 1 + _random.NextBelow(Math.Max(1, _options.ClientsMax - 1));
        for (int i = 0; i < initiators; i++)
        {
            var initiator = new Initiator(this, i);
            SpawnClient(initiator.LiveAsync);
        }

        if (!_random.NextChance(0.5)) return;
        var client = new SimNbdClient(this);
        SpawnClient(client.LiveAsync);
    }

    private void SpawnClient(Func<Task> live)
    {
        _clientsRunning++;
        Spawn(async () =>
        {
            await live();
            _clientsRunning--;
        });
    }

    /// <summary>The daemon is asked to stop.</summary>
    private void Stop()
    {
        if (IsStopping) return;
        Counters[SessionDid.Stops]++;
        IsStopping = true;
        _target.RequestStop();
        foreach (NbdSession session in _nbdServers) session.RequestStop();
    }

    private void CountCuts()
    {
        foreach (SimConnection wire in _wires)
        {
            if (wire.HasBroken) Counters[wire.HearsNoBreak ? SessionDid.SilentCuts : SessionDid.Cuts]++;
        }
    }

    /// <summary>Everybody has left: the target lets go of what died, everything is given back, and all is as the model says.</summary>
    private void EndOrderly(bool cutsPower)
    {
        bool ended = Loop.RunUntil(() => (_target.Sessions.Count == 0 && _servers.Count == 0) || IsBroken, EventsPerLifeMax);
        if (IsBroken || Loop.IsStopped)
        {
            Crash(cutsPower); // the clients were gone before it came, the server was not
            return;
        }

        Loop.StopBeforeEvent = null; // a crash that comes later than this has nobody to show it to
        CountCuts();
        if (!ended)
        {
            string sessions = string.Join("; ", _target.Sessions.Values.Select(s =>
                $"{s.InitiatorName} {s.Tsih}: {s.ConnectionCount} connections, {s.Counters.InFlight} in flight, dropped {s.IsDropped} ({s.EndReason})"));
            Violate(ViolationKind.Hang, $"connections that never end: {string.Join(", ", _servers)}; {_units.Sum(u => u.Unit!.TaskCount)} tasks; {sessions}");
        }

        if (IsBroken) return;
        ulong now = Tick();
        foreach ((VolumeModel volume, ModelWrite write) in _inFlight) volume.End(write, isOk: false, isDurable: false, now);
        _inFlight.Clear();
        Tick();
        foreach (SimUnit unit in _units)
        {
            if (!IsBroken) JudgeContent(unit, isRestart: false);
            if (unit.Unit!.TaskCount != 0) Violate(ViolationKind.Leak, $"LUN {unit.Lun} keeps {unit.Unit.TaskCount} tasks");
            if (unit.Unit.WorkLentCount != 0) Violate(ViolationKind.Leak, $"LUN {unit.Lun} keeps {unit.Unit.WorkLentCount} buffers");
        }

        Task<IoStatus> closing = _store.CloseAsync().AsTask();
        bool isClosed = Loop.RunUntil(() => closing.IsCompleted, EventsPerLifeMax);
        if (!isClosed || closing.Result != IoStatus.Ok) Violate(ViolationKind.Hang, "the store does not close");
        if (Loop.Buffers.LentCount != 0) Violate(ViolationKind.Leak, $"{Loop.Buffers.LentCount} buffers leak");
        FoldLoop();
        _disk.CutPower(); // a clean close is durable
        foreach (SimUnit unit in _units) unit.Model.Flushed(Tick());
        Counters[SessionDid.CleanEnds]++;
    }

    private void Crash(bool cutsPower)
    {
        CountCuts();
        FoldLoop();
        if (IsBroken) return;
        Counters[cutsPower ? SessionDid.PowerCuts : SessionDid.Kills]++;
        _powerWasCut = cutsPower;
        if (cutsPower) _disk.CutPower();
        else _disk.Kill();
        foreach (SimUnit unit in _units)
        {
            if (cutsPower) unit.OnPowerCut();
        }

        ulong now = Tick();
        foreach ((VolumeModel volume, ModelWrite write) in _inFlight) volume.End(write, isOk: false, isDurable: false, now);
        _inFlight.Clear();
        Tick();
    }

    private void FoldLoop()
    {
        _hash = (_hash ^ Loop.EventHash) * 1099511628211;
        _hash = (_hash ^ Loop.EventCount) * 1099511628211;
    }

    private void JudgeContent(SimUnit unit, bool isRestart)
    {
        IBlockDevice device = _store.OpenVolume(unit.Model.Head.Id)!;
        var content = new byte[device.SizeBytes];
        ulong start = Tick();
        if (!isRestart) unit.Model.BeginRead();
        for (int at = 0; at < content.Length; at += Units_Extent)
        {
            Memory<byte> target = content.AsMemory(at, Math.Min(Units_Extent, content.Length - at));
            if (Loop.Run(device.ReadAsync((ulong)at, target)).Status == IoStatus.Ok) continue;
            Violate(ViolationKind.Unreadable, $"volume {unit.Model.Head.Id} cannot be read at {at}");
            return;
        }

        content.AsSpan((int)unit.DeskSector(0) * Core.Units.SectorBytes, SimUnit.Desks * (int)SimUnit.DeskSectors * Core.Units.SectorBytes).Clear();
        Violation? fault = isRestart
            ? unit.Model.JudgeAfterRestart(content, _powerWasCut, staleAllowed: false, unreadable: null, settle: true, Tick())
            : unit.Model.EndRead(0, content, start);
        if (!isRestart) unit.Model.ReadDone();
        Tick();
        if (fault is not null) Violate(fault);
    }

    private const int Units_Extent = Core.Units.ExtentBytes;
}
