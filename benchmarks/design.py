"""Yardstick of `parcae design --pool`: R2 on a costly region after a share of a pool's cost."""
from __future__ import annotations
import sys, time
from pathlib import Path
import numpy as np, pandas as pd
from analysis.design import pool as pools
from analysis.fitting import fit as fitting
from analysis.fitting.dataset import Dataset
from analysis.fitting.options import FitOptions
from analysis.laws import formula
from analysis.api import Changes

C5="-5:5"
TASKS={
 "farseer": dict(shares=(.01,.05,.10), cost="6*N*D", laws={"nine":("exp(s*N**q + S) + exp(B*N**b + Q)*D**-exp(A*N**a + E)","E=1:6,s=-1:0.3,q=0.01:0.5,S=-1:1,B=10:1000,b=-0.6:-0.01,Q=-5:1,A=-5:1,a=0.001:0.25")}),
 "sparsity": dict(shares=(.20,.35,.50), cost="6*N_dense*D1+6*N_active*D2", laws={
   "product c":("exp(d1)*P**-a*N_active**-b*exp(c*log(P)*log(N_active)) + exp(d3)","d1=-5:5,a=0.01:3,b=0.01:3,c=-1:1,d3=-5:5"),
   "product":("exp(d1)*P**-a*N_active**-b + exp(d3)","d1=-5:5,a=0.01:3,b=0.01:3,d3=-5:5"),
   "sum c":("exp(d1)*P**-a + exp(d2)*N_active**-b*exp(c*log(P)*log(N_active)) + exp(d3)","d1=-5:5,a=0.01:3,d2=-5:5,b=0.01:3,c=-1:1,d3=-5:5"),
   "sum":("exp(d1)*P**-a + exp(d2)*N_active**-b + exp(d3)","d1=-5:5,a=0.01:3,d2=-5:5,b=0.01:3,d3=-5:5"),
 }),
 "data_constrained": dict(shares=(.01,.05,.10), cost="6*params*tokens", laws={
   "repeated":("E + A*params**-alpha + B*(min(unique_tokens, tokens) + min(unique_tokens, tokens)*R*(1 - exp(-max(tokens/unique_tokens - 1, 0)/R)))**-beta","R=0.1:1000,alpha=0.01:3,beta=0.01:3"),
   }),
}
def load(folder, task):
    frame=pd.read_csv(Path(folder)/f"{task}.csv")
    frame["cost"]=frame.eval(TASKS[task]["cost"])
    return frame
def law_of(frame, text, bound):
    law=formula.law(text,{c:c for c in frame.columns if c not in("loss","group","split","cost")},data={c:frame[c].to_numpy(float) for c in frame if c not in("group","split")})
    return Changes(bound=bound).of(law)
def predict(pool, rows, seed, final):
    data=Dataset.of({k:v[rows] for k,v in pool.columns.items()}, pool.loss[rows])
    f=fitting.fit(data,pool.law,FitOptions(interval="none",seed=seed,**final))
    return f.predict({k:v[pool.target] for k,v in pool.columns.items()})
def pool_of(frame, law):
    return pools.Pool(law=law,columns={c:frame[c].to_numpy(float) for c in law.columns},loss=frame.loss.to_numpy(),cost=frame.cost.to_numpy(),
      candidates=np.flatnonzero(frame.split=="train"),target=np.flatnonzero(frame.split=="test"))
def r2(truth,guess):
    return float(np.clip(1-((truth-guess)**2).sum()/((truth-truth.mean())**2).sum(),-1,1))
def score(frame, law_text, bound, shares, seed, options, final):
    parts=[]
    for _,g in frame.groupby("group",sort=False):
        g=g.reset_index(drop=True); pool=pool_of(g,law_of(g,law_text,bound)); total=pool.cost[pool.candidates].sum()
        parts.append((pool,total))
    out=[]
    for share in shares:
        truth,guess,n=[],[],0
        for pool,total in parts:
            if share==1: rows=pool.candidates
            else: rows=np.array([c.row for c in pools.choose(pool,share*total,options(seed))])
            n+=len(rows)
            truth.append(pool.loss[pool.target]); guess.append(predict(pool,rows,seed,final))
        out.append((r2(np.concatenate(truth),np.concatenate(guess)),n))
    return out
