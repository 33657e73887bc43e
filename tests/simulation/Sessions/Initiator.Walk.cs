using BlockServer.Protocols.Iscsi;

namespace BlockServer.Tests.Simulation.Sessions;

// The same short session again and again, cut one byte later each time.
internal sealed partial class Initiator
{
    private SimSession? _walked;

    /// <summary>One session with two writes at a time, an abort, a read, an unmap, a compare and write and a flush, in a place
    /// that the sessions before it used too; true when it came to its end whole.</summary>
    public async Task<bool> WalkAsync(SessionKeys keys)
    {
        SimUnit unit = world.Units[0];
        var session = new SimSession(world, _name, _isid, keys);
        world.Enlist(session);
        if (!await session.OpenAsync()) return false;
        if (_walked is not null)
        {
            // A cut command has happened or has not, and from this answer on it does not any more.
            _walked.Abandon();
            SettleAll(_walked);
        }

        _walked = session;
        await GreetAsync(session, unit);
        await ReadAsync(session, unit, 0, 4);
        Task first = WriteAsync(session, unit, 0, 2, null);
        await WriteAsync(session, unit, 1, 1, null);
        await first;
        await WriteAndAbortAsync(session, unit, 2, 2);
        await ZeroAsync(session, unit);
        await ExchangeAsync(session, unit);
        await FlushAsync(session, unit);
        if (session.IsDead || session.Links.Count == 0) return false;
        IscsiLogoutResponse? response = await session.LogoutAsync(IscsiLogoutReason.CloseSession, session.Links[0], 0);
        session.Abandon();
        return response == IscsiLogoutResponse.Success;
    }
}
