using System.Buffers;
using System.Globalization;
using BlockServer.Core;
using BlockServer.Protocols.Iscsi.Scsi;

namespace BlockServer.Protocols.Iscsi;

/// <summary>
/// The sessions of one target, or of discovery when there is no SCSI behind it. Lives on one loop, on which all of its
/// connections run, so that the commands of one session are ordered whatever connection they came by.
/// </summary>
public sealed class IscsiTarget(ILoop loop, IScsiTarget? scsi, IIscsiTargets targets, IscsiOptions options)
{
    private readonly SortedDictionary<ushort, IscsiSession> _sessions = [];
    private ushort _lastTsih;
    private bool _stopping;

    /// <summary>Sessions by their handle.</summary>
    public IReadOnlyDictionary<ushort, IscsiSession> Sessions => _sessions;

    /// <summary>Told about every answered command, or null.</summary>
    public IIscsiMeter? Meter { get; init; }

    internal IScsiTarget? Scsi => scsi;

    internal IIscsiTargets Targets => targets;

    internal IscsiOptions Options => options;

    internal ILoop Loop => loop;

    /// <summary>Finds or makes the session, tells <paramref name="admitted"/> about it, answers the login and serves the
    /// connection to its end; the reason. Owns the connection.</summary>
    public async ValueTask<string> ServeAsync(IscsiNegotiated negotiated, Action<IscsiSession>? admitted = null)
    {
        LoginMachine login = negotiated.Login;
        IConnection connection = negotiated.Connection;
        (IscsiLoginStatus status, IscsiSession? session) = await AdmitAsync(login);
        var output = new ArrayBufferWriter<byte>();
        login.Finish(
            status, session?.Tsih ?? login.Tsih, session?.ExpCmdSn ?? login.CmdSn, session?.MaxCmdSn ?? login.CmdSn, output);
        IscsiConnection? served = session is null ? null : new IscsiConnection(loop, negotiated, session, options);
        if (session is not null) admitted?.Invoke(session);
        var batch = new SendBatch();
        batch.Add(output.WrittenMemory);
        LoopTimer deadline = loop.CreateTimer(() =>
        {
            if (served is null) connection.Close();
            else served.Close("the initiator did not take the login response");
        });
        deadline.Start(options.LoginNanos);
        int sent = await connection.SendAsync(batch);
        deadline.Stop();
        if (served is not null) return await served.RunAsync(sent >= 0);
        connection.ShutdownSend();
        connection.Close();
        return $"login refused: {status}";
    }

    /// <summary>Refuses a login that had agreed on everything, and closes the connection.</summary>
    public static async ValueTask RefuseAsync(IscsiNegotiated negotiated, IscsiLoginStatus status)
    {
        LoginMachine login = negotiated.Login;
        var output = new ArrayBufferWriter<byte>();
        login.Finish(status, login.Tsih, login.CmdSn, login.CmdSn, output);
        var batch = new SendBatch();
        batch.Add(output.WrittenMemory);
        await negotiated.Connection.SendAsync(batch);
        negotiated.Connection.ShutdownSend();
        negotiated.Connection.Close();
    }

    /// <summary>Finishes what is in flight, tells the initiators and closes.</summary>
    public void RequestStop()
    {
        _stopping = true;
        foreach (IscsiSession session in All()) session.RequestStop();
    }

    /// <summary>Ends a session at once; commands in flight still finish on the device.</summary>
    public void Cut(ushort tsih, string reason)
    {
        if (_sessions.TryGetValue(tsih, out IscsiSession? session)) session.Drop(reason);
    }

    /// <summary>Asks the initiator of a session to log out; ends it after <see cref="IscsiOptions.LogoutNanos"/>.</summary>
    public void AskToLeave(ushort tsih, string reason)
    {
        if (_sessions.TryGetValue(tsih, out IscsiSession? session)) session.AskToLeave(reason);
    }

    /// <summary>Ends all sessions at once.</summary>
    public void CutAll(string reason)
    {
        foreach (IscsiSession session in All()) session.Drop(reason);
    }

    internal IscsiSession[] All() => [.. _sessions.Values];

    internal void Remove(IscsiSession session) => _sessions.Remove(session.Tsih);

    private async ValueTask<(IscsiLoginStatus Status, IscsiSession? Session)> AdmitAsync(LoginMachine login)
    {
        if (login.Tsih != 0) return await JoinAsync(login);

        // Reinstatement: the same initiator port takes its place again. What its predecessor has in flight must have
        // ended on the device first, or an old write could land on top of a new one.
        while (!login.IsDiscovery && Find(login) is { } old)
        {
            old.Drop("the session was reinstated");
            if (options.Breaks(IscsiBrokenRules.ReinstateAtOnce)) break;
            await old.WaitEndedAsync();
        }

        if (_stopping) return (IscsiLoginStatus.ServiceUnavailable, null);
        if (_sessions.Count >= options.SessionsMax) return (IscsiLoginStatus.OutOfResources, null);
        do _lastTsih++;
        while (_lastTsih == 0 || _sessions.ContainsKey(_lastTsih));
        var session = new IscsiSession(this, login, _lastTsih);
        _sessions.Add(_lastTsih, session);
        return (IscsiLoginStatus.Success, session);
    }

    private async ValueTask<(IscsiLoginStatus Status, IscsiSession? Session)> JoinAsync(LoginMachine login)
    {
        if (!IsOfSession(login, out IscsiSession? session)) return (IscsiLoginStatus.SessionDoesNotExist, null);

        // Connection reinstatement: an implicit logout of the connection that had this id.
        while (session.FindConnection(login.Cid) is { } old)
        {
            old.EndOrderly("the connection was reinstated");
            await old.WaitEndedAsync();
            if (!IsOfSession(login, out session)) return (IscsiLoginStatus.SessionDoesNotExist, null);
        }

        if (session.IsDropped || session.IsLeaving || _stopping) return (IscsiLoginStatus.CannotInclude, null);
        bool isFull = session.ConnectionCount >= session.Parameters.MaxConnections;
        return isFull ? (IscsiLoginStatus.TooManyConnections, null) : (IscsiLoginStatus.Success, session);
    }

    private bool IsOfSession(LoginMachine login, [System.Diagnostics.CodeAnalysis.NotNullWhen(true)] out IscsiSession? session) =>
        _sessions.TryGetValue(login.Tsih, out session) && session.Isid == login.Isid
        && session.InitiatorName == login.InitiatorName && session.User == login.User;

    private IscsiSession? Find(LoginMachine login)
    {
        foreach (IscsiSession session in _sessions.Values)
        {
            bool isSame = session.Isid == login.Isid && session.InitiatorName == login.InitiatorName
                && session.PortalGroup == login.Target!.PortalGroup;
            if (isSame) return session;
        }

        return null;
    }

    internal static string PortOf(LoginMachine login) =>
        $"{login.InitiatorName},i,0x{login.Isid.ToString("x12", CultureInfo.InvariantCulture)}";
}
